"""Our transformer against diffusers' SD3Transformer2DModel, on random weights in the shapes of the real models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.models.sd3.transformer import MMDiT
from tests.models.tiny import SHAPES, mmdit_inputs, tiny_mmdit

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order


def pair(shape: str) -> tuple[MMDiT, nn.Module]:
    ours = tiny_mmdit(shape)
    theirs = diffusers.SD3Transformer2DModel(**SHAPES[shape])
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def run_theirs(model: nn.Module, inputs: dict[str, Tensor], **more: object) -> Tensor:
    return model(
        hidden_states=inputs["noisy_latents"],
        timestep=inputs["timesteps"],
        encoder_hidden_states=inputs["tokens"],
        pooled_projections=inputs["pooled"],
        return_dict=False,
        **more,
    )[0]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value; absolute where all of theirs is zero."""
    return ((ours - theirs).abs().max() / (theirs.abs().max() or 1)).item()


@pytest.mark.parametrize("size", [(12, 8), (24, 24), (2, 22)])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_diffusers(shape: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(shape)
    inputs = mmdit_inputs(ours.config, size=size)
    assert difference(ours(**inputs), run_theirs(theirs, inputs)) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient_equals_diffusers(shape: str) -> None:
    ours, theirs = pair(shape)
    inputs = mmdit_inputs(ours.config)
    copies = [{k: v.clone().requires_grad_(k != "timesteps") for k, v in inputs.items()} for _ in range(2)]
    outputs = ours(**copies[0]), run_theirs(theirs, copies[1])
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    wanted = dict(theirs.named_parameters())
    zero = {name for name, parameter in wanted.items() if not parameter.grad.any()}
    assert all(".attn.add_q_proj." in name or "norm_added_q" in name for name in zero), "only the last text queries"
    for name, parameter in ours.named_parameters():
        assert difference(parameter.grad, wanted[name].grad) <= TOLERANCE, name
    for name in ("noisy_latents", "tokens", "pooled"):
        assert difference(copies[0][name].grad, copies[1][name].grad) <= TOLERANCE, name


@pytest.mark.parametrize("count", [1, 2])
def test_control_residuals_are_added_where_diffusers_adds_them(count: int) -> None:
    ours, theirs = pair("sd3-medium")
    inputs = mmdit_inputs(ours.config)
    control = list(torch.randn(count, 2, 6 * 4, ours.config.dim, generator=torch.Generator().manual_seed(3)))
    wanted = run_theirs(theirs, inputs, block_controlnet_hidden_states=control)
    assert difference(ours(**inputs, control=control), wanted) <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusers_reads_what_we_write_and_we_what_it_writes(shape: str, tmp_path: Path) -> None:
    ours, theirs = pair(shape)
    inputs = mmdit_inputs(ours.config)
    ours.save_pretrained(tmp_path / "ours")
    stock, info = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(run_theirs(stock, inputs), run_theirs(theirs, inputs))

    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("whole", "shards"):
        assert torch.equal(MMDiT.from_pretrained(tmp_path / folder)(**inputs), ours(**inputs))
