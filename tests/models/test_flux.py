"""FLUX: what it promises beyond equality with diffusers (for that see parity/test_flux.py)."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.infer.generation import generate
from hcpdiff.infer.request import Request
from hcpdiff.models import Flux, FluxConfig, FluxTransformer
from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.models.tiny_flux import SHAPES, flux_inputs, tiny_flux, tiny_flux_pipeline

pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {shape: tmp_path_factory.mktemp(shape) for shape in SHAPES}
    for shape, folder in made.items():
        tiny_flux_pipeline(shape).save_pretrained(folder)
    return made


def test_a_fresh_model_returns_zero_and_learns_from_the_first_step() -> None:
    model = FluxTransformer(FluxConfig.from_dict(SHAPES["dev"]))
    output = model(**flux_inputs(model.config))
    assert not output.any()
    (output - 1).square().sum().backward()
    assert model.proj_out.weight.grad.any()
    assert all(p.any() for n, p in model.named_parameters() if n.endswith("attn.to_q.weight")), "xavier elsewhere"


def test_a_token_of_weight_n_equals_n_copies_and_weight_zero_hides() -> None:
    model = tiny_flux()
    inputs = flux_inputs(model.config, tokens=5)
    tokens = inputs.pop("tokens")
    mask = torch.tensor([1.0, 1, 0, 1, 6]).expand(2, -1)
    copies = torch.cat([tokens[:, :2], tokens[:, 3:4], tokens[:, 4:].expand(-1, 6, -1)], dim=1)
    wanted = model(**inputs, tokens=copies)
    assert difference(model(**inputs, tokens=tokens, mask=mask), wanted) <= TOLERANCE
    assert difference(model(**inputs, tokens=tokens), wanted) > 100 * TOLERANCE, "the mask matters"


@pytest.mark.parametrize("mode", ["all", "mlp", 1, 2])
def test_checkpointing_changes_no_gradient_and_runs_hooks_again(mode: Literal["all", "mlp"] | int) -> None:
    inputs = flux_inputs(tiny_flux().config)
    plain, checkpointed = tiny_flux(), tiny_flux()
    checkpointed.gradient_checkpointing(mode)
    calls: dict[FluxTransformer, int] = {plain: 0, checkpointed: 0}
    for model in calls:

        def hook(module: object, args: object, output: Tensor, model: FluxTransformer = model) -> Tensor:
            calls[model] += 1
            return output * 1.5

        model.transformer_blocks[0].ff.net[2].register_forward_hook(hook)
        model.single_transformer_blocks[2].proj_mlp.register_forward_hook(hook)  # the fifth of all blocks
        model(**inputs).square().sum().backward()
    assert calls == {plain: 2, checkpointed: 4}
    wanted = dict(plain.named_parameters())
    for name, parameter in checkpointed.named_parameters():
        assert torch.equal(parameter.grad, wanted[name].grad), name


def test_checkpointing_keeps_less_for_backward_and_an_unknown_mode_is_an_error() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")
    model = tiny_flux().requires_grad_(False)
    inputs = flux_inputs(model.config, size=(24, 24))
    inputs["noisy_latents"].requires_grad_()
    kept = {}
    for mode in ("none", "mlp", "all"):
        model.gradient_checkpointing(mode)
        kept[mode] = measure.saved_bytes(lambda: model(**inputs))
    assert kept["all"] < 0.5 * kept["none"]
    assert kept["mlp"] < 0.8 * kept["none"]
    for mode in ("some", 0, True):
        with pytest.raises(ValueError, match="use none, all, mlp"):
            model.gradient_checkpointing(mode)  # type: ignore[arg-type]


def test_an_adapter_on_a_single_block_keeps_the_inputs_of_its_last_layer_alone() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.denoiser = tiny_flux(num_layers=1, num_single_layers=1).requires_grad_(False)

    host = Host()
    inputs = flux_inputs(host.denoiser.config, size=(24, 24))
    inputs["noisy_latents"].requires_grad_()
    plain = measure.saved_bytes(lambda: host.denoiser(**inputs))
    attach(host, {"p": PluginSpec(LoRA, layers=["single_transformer_blocks.0.proj_out"], options={"rank": 1})})
    more = measure.saved_bytes(lambda: host.denoiser(**inputs)) - plain
    assert more < 2 * (144 + 5) * 36 * 4, "less than one tensor of the block's width; its input is five wide"


@pytest.mark.parametrize(("kind", "masked"), [("transformer_blocks", False), ("single_transformer_blocks", True)])
def test_every_block_compiles_without_a_graph_break(kind: str, masked: bool) -> None:
    from hcpdiff.models.rope import rotation

    model = tiny_flux()
    eager = getattr(model, kind)[0]
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    image, text, emb = (torch.randn(2, *n, 36, generator=generator) for n in ((6,), (4,), ()))
    bias = torch.randn(2, 1, 1, 10, generator=generator) if masked else None
    turn = rotation(2, 3, model.config.axes_dims_rope, text=4)
    outputs = []
    for run in (eager, compiled):
        inputs = [x.clone().requires_grad_() for x in (image, text, emb)]
        if kind == "transformer_blocks":
            result = torch.cat(run(*inputs, bias, turn[:6]), dim=1)
        else:
            result = run(torch.cat(inputs[:2], dim=1), inputs[2], turn, bias)
        result.square().sum().backward()
        outputs.append([result, *(x.grad for x in inputs)])
    for ours, wanted in zip(*reversed(outputs), strict=True):
        assert difference(ours, wanted) <= TOLERANCE


def test_fewer_calls_than_diffusers() -> None:
    measure = pytest.importorskip("tests.benchmarks.measure")
    from tests.parity.test_flux import pair, run_theirs

    ours, theirs = pair("dev")
    inputs = flux_inputs(ours.config)
    totals = []
    for run in (lambda: ours(**inputs), lambda: run_theirs(theirs, inputs)):
        with measure.AtenCalls() as calls:
            run().sum().backward()
        totals.append(calls.total)
    assert totals[0] <= 0.8 * totals[1], totals


def test_autocast_and_bfloat16_stay_close_to_float32() -> None:
    model = tiny_flux()
    inputs = flux_inputs(model.config)
    wanted = model(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs)
    output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    half = copy.deepcopy(model).bfloat16()
    low = half(**{k: v if k in ("timesteps", "guidance") else v.bfloat16() for k, v in inputs.items()})
    assert low.dtype == torch.bfloat16
    for result in (output, low):
        assert difference(result.float(), wanted) < 0.05  # 8 bits of mantissa through five blocks


def test_inputs_and_configs_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    model = tiny_flux()
    with pytest.raises(ValueError, match="latents of 7 x 8; both sides must be even"):
        model(**flux_inputs(model.config, size=(7, 8)))
    told, untold = flux_inputs(model.config), flux_inputs(tiny_flux("schnell").config)
    with pytest.raises(ValueError, match=r"needs a guidance scale, e\.g\. 3\.5"):
        model(**untold)
    with pytest.raises(ValueError, match="reads no guidance scale"):
        tiny_flux("schnell")(**told)
    for change, message in {
        ("patch_size", 2): "it must be 1",
        ("in_channels", 96): "another pipeline",
        ("axes_dims_rope", (2, 5, 5)): "three even numbers",
        ("attention_head_dim", 16): "sums up to 12; it must be attention_head_dim = 16",
        ("num_heads", 3): "no setting num_heads",
    }.items():
        with pytest.raises(ValueError, match=message):
            FluxConfig.from_dict(SHAPES["dev"] | {"out_channels": 16} | dict([change]))
    with pytest.raises(FileNotFoundError, match=r"no config\.json here"):
        FluxTransformer.from_pretrained(tmp_path)


def told_guidance(family: Flux, run: Any) -> set[float]:
    """The guidance scales that the denoiser is told while `run` runs."""
    seen: set[float] = set()
    handle = family.denoiser.register_forward_pre_hook(lambda _, args: seen.update(args[4].tolist()))
    run()
    handle.remove()
    return seen


@torch.no_grad()
def test_dev_is_told_one_guidance_in_training_and_another_where_it_draws(folders: dict[str, Path]) -> None:
    family = Flux.from_pretrained(folders["dev"], t5_tokens=7, embedded_guidance=2.5, train_guidance=1.5).train()
    conditioning, t = family.encode_prompt(["a"]), torch.tensor([500])  # whole numbers do not round the scale

    def step() -> None:
        family.denoise(torch.zeros(1, 4, 4, 4), t, conditioning)

    assert told_guidance(family, step) == {1.5}
    assert told_guidance(family, lambda: generate(family, Request(prompts=["a"], size=(16, 16), steps=2))) == {2.5}
    assert family.training, "a preview leaves it in training"
    assert told_guidance(family.eval(), step) == {2.5}


@torch.no_grad()
def test_the_scale_that_dev_is_told_changes_its_picture(folders: dict[str, Path]) -> None:
    one, two = (Flux.from_pretrained(folders["dev"], t5_tokens=7, embedded_guidance=g) for g in (1.0, 3.5))
    noisy, t, conditioning = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), one.encode_prompt(["a"])
    assert difference(one.denoise(noisy, t, conditioning), two.denoise(noisy, t, conditioning)) > 0.001


@pytest.mark.parametrize(("shape", "tokens"), [("dev", 512), ("schnell", 256)])
def test_how_many_tokens_the_t5_gives_follows_the_model(folders: dict[str, Path], shape: str, tokens: int) -> None:
    folder = folders[shape]
    assert Flux.from_pretrained(folder).text_settings.startswith(f"t5_tokens={tokens} emphasis=none")
    assert Flux.token_counts(["ab", "abcd"], folder) == {"clip_l": ([4, 6], 12), "t5": ([4, 6], tokens)}
    assert Flux.token_counts(["ab"], path=folder, t5_tokens=9)["t5"] == ([4], 9)


def test_settings_that_are_wrong_or_would_do_nothing_are_errors(folders: dict[str, Path]) -> None:
    for key in ("embedded_guidance", "train_guidance"):
        with pytest.raises(ValueError, match=f"{key}: this model, like schnell, is told no guidance scale"):
            Flux.from_pretrained(folders["schnell"], **{key: 2.0})
        with pytest.raises(ValueError, match=f"{key}: -1 is no guidance scale; use 0 or more"):
            Flux.from_pretrained(folders["dev"], **{key: -1})
    with pytest.raises(ValueError, match="t5_tokens: 0 is no number of tokens"):
        Flux.from_pretrained(folders["dev"], t5_tokens=0)


def test_latents_stay_unpacked_outside_and_images_divide_by_two_cells(folders: dict[str, Path]) -> None:
    spec = Flux.latent_spec(folders["dev"])
    assert (spec.channels, spec.downscale, spec.multiple_of, spec.max_side) == (4, 2, 4, None)
    assert Flux.from_pretrained(folders["dev"]).latent == spec


def test_from_scratch_is_seeded_and_reads_the_rest(folders: dict[str, Path]) -> None:
    trained = Flux.from_pretrained(folders["dev"])
    one, same, other = (
        Flux.from_pretrained(folders["dev"], from_scratch=["denoiser"], seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "denoiser.single_transformer_blocks.0.proj_mlp.weight"
    assert not torch.equal(one[name], other[name])
    assert all(torch.equal(v, one[k]) for k, v in trained.state_dict().items() if not k.startswith("denoiser."))


def test_skeletons_have_the_models_layers_and_import_neither_transformers_nor_diffusers(
    folders: dict[str, Path],
) -> None:
    family = Flux.from_pretrained(folders["dev"])
    for part in ("denoiser", "text_encoders.clip_l", "text_encoders.t5"):
        skeleton, wanted = Flux.skeleton(part, path=folders["dev"]), family.get_submodule(part)
        shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (skeleton, wanted)]
        assert shapes[0] == shapes[1]
        assert all(p.is_meta for p in skeleton.parameters())
    code = f"""
import sys
from hcpdiff.models import Flux
assert Flux.skeleton("denoiser", path={str(folders["dev"])!r}).single_transformer_blocks[0].proj_out.weight.is_meta
print([name for name in ("transformers", "diffusers", "peft", "accelerate") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@torch.no_grad()
def test_a_request_that_names_no_guidance_runs_one_branch(folders: dict[str, Path]) -> None:
    family, rows = Flux.from_pretrained(folders["dev"], t5_tokens=7), []
    handle = family.denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    generate(family, Request(prompts=["a"], size=(16, 16), steps=2))
    handle.remove()
    assert rows == [1, 1]


@torch.no_grad()
def test_weights_act_on_the_tokens_and_chunks_on_the_pooled_vector(folders: dict[str, Path]) -> None:
    plain, webui, long = (
        Flux.from_pretrained(folders["dev"], t5_tokens=9, **reading)
        for reading in ({}, {"emphasis": "webui"}, {"chunks": 2})
    )
    marked, unmarked = webui.encode_prompt(["a (b:1.5)"]), plain.encode_prompt(["a b"])
    assert difference(marked.tokens, unmarked.tokens) > 0.01
    assert torch.equal(marked.pooled, unmarked.pooled)
    assert torch.equal(webui.encode_prompt(["a b"]).tokens, unmarked.tokens)
    text = "abcdefg hijk lmnop"
    assert difference(long.encode_prompt([text]).pooled, plain.encode_prompt([text]).pooled) > 0.01
    short = long.encode_prompt(["a b"]).pooled
    assert difference(short, unmarked.pooled) < 1e-5  # a batch of two chunks sums in another order
    with pytest.raises(ValueError, match="chunks: 'auto' depends on the batch"):
        Flux.from_pretrained(folders["dev"], chunks="auto").train()
