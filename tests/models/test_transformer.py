"""MMDiT: what it promises beyond equality with diffusers (for that see parity/test_mmdit.py)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from hcpdiff.models.sd3.block import JointBlock
from hcpdiff.models.sd3.transformer import MMDiT, MMDiTConfig
from tests.models.tiny import SHAPES, mmdit_inputs, tiny_mmdit

TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def test_a_fresh_model_returns_zero_and_learns_from_the_first_step() -> None:
    model = MMDiT(MMDiTConfig.from_dict(SHAPES["sd3.5-medium"]))
    inputs = mmdit_inputs(model.config)
    output = model(**inputs)
    assert not output.any()
    (output - 1).square().sum().backward()
    assert model.proj_out.weight.grad.any()
    assert all(p.any() for n, p in model.named_parameters() if n.endswith("attn.to_q.weight")), "xavier elsewhere"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_of_weight_n_equals_n_copies_and_weight_zero_hides(shape: str) -> None:
    model = tiny_mmdit(shape)
    inputs = mmdit_inputs(model.config, tokens=5)
    tokens = inputs.pop("tokens")
    mask = torch.tensor([1.0, 1, 0, 1, 6]).expand(2, -1)
    copies = torch.cat([tokens[:, :2], tokens[:, 3:4], tokens[:, 4:].expand(-1, 6, -1)], dim=1)
    wanted = model(**inputs, tokens=copies)
    assert difference(model(**inputs, tokens=tokens, mask=mask), wanted) <= TOLERANCE
    assert difference(model(**inputs, tokens=tokens), wanted) > 100 * TOLERANCE, "the mask matters"


@pytest.mark.parametrize("mode", ["all", "mlp", 1, 2])
def test_checkpointing_changes_no_gradient_and_runs_hooks_again(mode: Literal["all", "mlp"] | int) -> None:
    inputs = mmdit_inputs(tiny_mmdit().config)
    plain, checkpointed = tiny_mmdit("sd3.5-medium"), tiny_mmdit("sd3.5-medium")
    checkpointed.gradient_checkpointing(mode)
    calls: dict[MMDiT, int] = {plain: 0, checkpointed: 0}
    for model in calls:

        def hook(module: object, args: object, output: Tensor, model: MMDiT = model) -> Tensor:
            calls[model] += 1
            return output * 1.5

        model.transformer_blocks[0].ff.net[2].register_forward_hook(hook)
        model(**inputs).square().sum().backward()
    assert calls == {plain: 1, checkpointed: 2}
    wanted = dict(plain.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        assert torch.equal(parameter.grad, wanted[name].grad), name


@pytest.mark.parametrize("mode", ["some", 0, -1, True])
def test_an_unknown_checkpointing_mode_is_an_error(mode: object) -> None:
    with pytest.raises(ValueError, match="use none, all, mlp"):
        tiny_mmdit().gradient_checkpointing(mode)  # type: ignore[arg-type]


def test_checkpointing_keeps_less_for_backward() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")
    model = tiny_mmdit().requires_grad_(False)
    inputs = mmdit_inputs(model.config, size=(24, 24))
    inputs["noisy_latents"].requires_grad_()
    kept = {}
    for mode in ("none", "mlp", "all"):
        model.gradient_checkpointing(mode)
        kept[mode] = measure.saved_bytes(lambda: model(**inputs))
    assert kept["all"] < 0.5 * kept["none"]
    assert kept["mlp"] < 0.75 * kept["none"]


@pytest.mark.parametrize(("block", "masked"), [(0, True), (2, False)], ids=["dual and masked", "last"])
def test_every_block_compiles_without_a_graph_break(block: int, masked: bool) -> None:
    model = tiny_mmdit("sd3.5-medium")
    eager: JointBlock = model.transformer_blocks[block]
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    image, text, emb = (torch.randn(2, *n, 32, generator=generator) for n in ((6,), (4,), ()))
    bias = torch.randn(2, 1, 1, 10, generator=generator) if masked else None
    outputs = []
    for run in (eager, compiled):
        inputs = [x.clone().requires_grad_() for x in (image, text, emb)]
        first, second = run(*inputs, bias)
        (first.square().sum() + (0 if second is None else second.square().sum())).backward()
        outputs.append([first, *(x.grad for x in inputs)])
    for ours, wanted in zip(*reversed(outputs), strict=True):
        assert difference(ours, wanted) <= TOLERANCE


def test_fewer_calls_than_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    measure = pytest.importorskip("tests.benchmarks.measure")
    ours = tiny_mmdit("sd3-medium", num_layers=4)
    theirs = diffusers.SD3Transformer2DModel(**SHAPES["sd3-medium"] | {"num_layers": 4})
    x = mmdit_inputs(ours.config)
    runs = [
        lambda: ours(**x),
        lambda: theirs(x["noisy_latents"], x["tokens"], x["pooled"], x["timesteps"], return_dict=False)[0],
    ]
    forward, both = [], []
    for run in runs:
        with measure.AtenCalls() as calls:
            output = run()
        forward.append(calls.total)
        with calls:
            output.sum().backward()
        both.append(calls.total)
    assert forward[0] <= 0.75 * forward[1], forward
    assert both[0] <= 0.75 * both[1], both


def test_autocast_and_bfloat16_stay_close_to_float32() -> None:
    model = tiny_mmdit("sd3.5-medium")
    inputs = mmdit_inputs(model.config)
    wanted = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    half = copy.deepcopy(model).bfloat16()
    times = inputs.pop("timesteps")
    low = half(**{k: v.bfloat16() for k, v in inputs.items()}, timesteps=times)
    assert low.dtype == torch.bfloat16
    for result in (output, low):
        assert difference(result.float(), wanted) < 0.05  # 8 bits of mantissa through three blocks


def test_sizes_that_do_not_fit_are_errors() -> None:
    model = tiny_mmdit()
    for size in ((7, 8), (26, 8)):
        with pytest.raises(ValueError, match="must divide by 2 and be at most 24"):
            model(**mmdit_inputs(model.config, size=size))


def test_configs_that_make_no_sense_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"caption_projection_dim is 30; .* = 32"):
        MMDiTConfig.from_dict(SHAPES["sd3-medium"] | {"caption_projection_dim": 30})
    with pytest.raises(ValueError, match="qk_norm is 'layer_norm'"):
        MMDiTConfig.from_dict(SHAPES["sd3-medium"] | {"qk_norm": "layer_norm"})
    with pytest.raises(ValueError, match="no setting num_heads"):
        MMDiTConfig.from_dict({"num_heads": 3})
    with pytest.raises(FileNotFoundError, match=r"no config\.json here"):
        MMDiT.from_pretrained(tmp_path)


def test_saving_over_the_folder_that_was_read_is_safe(tmp_path: Path) -> None:
    tiny_mmdit().save_pretrained(tmp_path)
    model = MMDiT.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = MMDiT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(v.bfloat16(), again.state_dict()[k]) for k, v in model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
