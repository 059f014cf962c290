from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hcpdiff.formats import kohya, modules, names, reading
from hcpdiff.formats.lora_files import Update
from hcpdiff.formats.lycoris import LoKr
from hcpdiff.plugins import DoRA, LoHa, LoRA, PluginSpec, WeightChange, weight_change, weights
from hcpdiff.plugins import LoKr as TrainedLoKr
from hcpdiff.plugins.attach import attach
from tests.models.tiny_unet import tiny_sd
from tests.plugins.test_lora import shake
from tests.plugins.toys import Family, mmdit_args, mmdit_family

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV, NORM = "down_blocks.0.resnets.0.conv1", "down_blocks.0.resnets.0.norm1"
WORDS = "text_model.embeddings.token_embedding"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def unet_family() -> Family:
    pipeline = tiny_sd()
    family = Family(pipeline.unet, {"clip": pipeline.text_encoder}).requires_grad_(False).eval()
    family.architecture = "sd"  # pyright: ignore[reportAttributeAccessIssue]
    return family


def run(family: Family) -> Tensor:
    with torch.no_grad():
        tokens = family.text_encoders["clip"](torch.tensor([[0, 3, 5, 1]]))[0]
        return family.denoiser(random(1, 4, 8, 8), torch.tensor([500]), tokens).sample


LORA = {"lora_down.weight": random(2, 8), "lora_up.weight": random(8, 2)}
LOHA = {f"hada_w{i}_{ab}": random(*shape, seed=i) for i in (1, 2) for ab, shape in (("a", (8, 2)), ("b", (2, 8)))}
LOKR = {"lokr_w1": random(2, 4), "lokr_w2_a": random(4, 2), "lokr_w2_b": random(2, 2), "alpha": torch.tensor(3.0)}
GLORA = {f"{ab}{i}.weight": random(*shape, seed=i) for i, shape in ((1, (8, 2)), (2, (2, 8))) for ab in "ab"}
FORMS: dict[str, dict[str, dict[str, Tensor]]] = {  # {what: {layer: tensors}}
    "loha": {Q: LOHA},
    "lokr": {Q: LOKR},
    "full": {CONV: {"diff": random(8, 8, 3, 3), "diff_b": random(8)}, NORM: {"w_norm": random(8), "b_norm": random(8)}},
    "glora": {Q: GLORA},
    "ia3": {
        Q: {"weight": random(8), "on_input": torch.tensor(1)},
        CONV: {"weight": random(1, 8, 1, 1), "on_input": torch.tensor(0)},
    },
    "oft": {CONV: {"oft_blocks": random(2, 4, 4), "rescale": random(8, 1, 1, 1), "alpha": torch.tensor(0.01)}},
    "boft": {Q: {"oft_blocks": random(2, 2, 4, 4), "alpha": torch.tensor(0.0)}},
    "dora": {Q: LORA | {"dora_scale": 1 + random(8, 1)}},
    "mixed": {Q: LORA | {"alpha": torch.tensor(1.0)}, NORM: {"w_norm": random(8)}},
}


def written(form: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {
        f"lora_unet_{layer.replace('.', '_')}.{key}": tensor.to(dtype) if tensor.is_floating_point() else tensor
        for layer, own in FORMS[form].items()
        for key, tensor in own.items()
    }
    save_file(tensors, path)
    return path


def changed(family: Family, form: str, strength: float) -> Family:
    """A copy with other weights."""
    family = copy.deepcopy(family)
    tensors = {f"{layer}.{key}": tensor for layer, own in FORMS[form].items() for key, tensor in own.items()}
    for layer, change in modules.grouped(tensors)[0].items():
        module = family.denoiser.get_submodule(layer)
        module.weight.data = change.applied(module.weight, strength)
        bias = change.applied_bias(module.bias, strength)
        module.bias = None if bias is None else nn.Parameter(bias)
    return family


@pytest.mark.parametrize("form", list(FORMS))
def test_a_file_works_with_a_strength_can_be_fused_and_comes_back_from_its_own_file(form: str, tmp_path: Path) -> None:
    family = unet_family()
    plain = run(family)
    group = weights.attach_file(family, written(form, tmp_path / "x.safetensors"), strength=0.5, name="x")
    for strength in (0.5, 1.0):
        group.set_strength("x", strength)
        live = run(family)
        assert not torch.allclose(live, plain, atol=1e-4)
        assert torch.allclose(live, run(changed(unet_family(), form, strength)), atol=1e-5)  # fp32 sums
    group.set_strength("x", 0.0)
    assert torch.equal(run(family), plain)
    group.set_strength("x", 1.0)
    group.fuse()
    assert torch.allclose(run(family), live, atol=1e-5)
    group.unfuse()
    weights.save(group, "x", tmp_path / "again.safetensors")
    before, after = load_file(tmp_path / "x.safetensors"), load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert {key.rpartition(".")[2] for key in after.keys() - before.keys()} <= {"alpha"}
    again = unet_family()
    other = weights.attach_file(again, tmp_path / "again.safetensors", name="x")
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in group.state_dict().items())
    assert torch.equal(run(again), live)
    group.detach()
    assert torch.equal(run(family), plain)


@pytest.mark.parametrize("form", ["loha", "dora", "oft"])
def test_merging_a_file_is_what_it_does_as_a_plugin(form: str, tmp_path: Path) -> None:
    family = unet_family()
    weights.merge(family, written(form, tmp_path / "x.safetensors"), strength=0.7)
    assert torch.allclose(run(family), run(changed(unet_family(), form, 0.7)), atol=1e-5)
    assert not any(module._forward_hooks for module in family.modules())


def test_the_difference_is_computed_once_for_each_strength(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    real = weight_change.difference
    monkeypatch.setattr(weight_change, "difference", lambda *given: (calls.append(given[2]), real(*given))[1])
    family = unet_family()
    group = weights.attach_file(family, written("loha", tmp_path / "x.safetensors"), name="x")
    for strength in (1.0, 1.0, 0.5, 0.5, 1.0):
        group.set_strength("x", strength)
        run(family)
    assert calls == [1.0, 0.5, 1.0]
    with torch.no_grad():
        group.state_dict()[f"x.denoiser.{Q}.hada_w1_a"].zero_()
        family.denoiser.get_submodule(Q).weight.add_(1)
    run(family)
    assert len(calls) == 4, "other tensors, so another difference"
    group.requires_grad_(True)
    run(family)
    run(family)
    assert len(calls) == 6, "while it learns there is none to keep"


def test_a_half_precision_file_keeps_its_type_and_works_on_a_bfloat16_model(tmp_path: Path) -> None:
    family = unet_family()
    live = run(changed(family, "lokr", 1.0))
    family.to(torch.bfloat16)
    group = weights.attach_file(family, written("lokr", tmp_path / "x.safetensors", torch.float16), name="x")
    assert {tensor.dtype for tensor in group.state_dict().values()} == {torch.float16}
    x = random(2, 8).to(torch.bfloat16)
    layer = family.denoiser.get_submodule(Q)
    assert layer(x).dtype is torch.bfloat16
    expected = changed(unet_family(), "lokr", 1.0).denoiser.get_submodule(Q)(x.float())
    assert torch.allclose(layer(x).float(), expected, atol=0.05)  # bf16 has 8 bits
    assert live.isfinite().all()


def test_embeddings_of_a_text_encoder_change(tmp_path: Path) -> None:
    family = unet_family()
    encoder = family.text_encoders["clip"]
    table = next(layer for layer in encoder.modules() if isinstance(layer, nn.Embedding))
    diff = random(*table.weight.shape)
    save_file({f"text_encoders.clip_l.transformer.{WORDS}.diff": diff}, tmp_path / "x.safetensors")
    ids = torch.tensor([[1, 2, 3]])
    expected = table(ids) + 0.5 * diff[ids]
    weights.attach_file(family, tmp_path / "x.safetensors", strength=0.5)
    assert torch.allclose(table(ids), expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"lora_unet_{Q.replace('.', '_')}.diff": torch.ones(3, 8)}, r"Full does not fit a weight of \[8, 8\]"),
        ({"lora_unet_down_blocks_9_resnets_0_norm1.w_norm": torch.ones(8)}, "has no such layer for 1 of 1"),
    ],
)
def test_files_that_do_not_fit_are_errors(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        weights.attach_file(unet_family(), tmp_path / "x.safetensors")


def test_two_adapters_of_other_kinds_on_one_layer_add_up(tmp_path: Path) -> None:
    family = unet_family()
    lora = attach(family, {"style": PluginSpec(LoRA, layers=[Q], options={"rank": 2})})
    shake(lora)
    x, layer = random(3, 8), family.denoiser.get_submodule(Q)
    only = layer(x)
    loha = weights.attach_file(family, written("dora", tmp_path / "x.safetensors"), name="x")
    both = layer(x)
    lora.detach()
    alone = layer(x)
    loha.detach()
    assert torch.allclose(both - layer(x), (only - layer(x)) + (alone - layer(x)), atol=1e-5)


def fused_lokr(path: Path, family: Family) -> LoKr:
    """A file of kohya's kind on the joined q, k and v of the first block."""
    width = family.denoiser.transformer_blocks[0].attn.to_q.in_features
    change = LoKr(w1=random(4, 4), w2=random(3 * width // 4, width // 4))
    save_file(kohya.module_tensors("lora_unet_joint_blocks_0_x_block_attn_qkv", change), path)
    return change


def test_a_fused_lokr_works_on_the_layers_apart_and_is_saved_as_it_was(tmp_path: Path) -> None:
    family = mmdit_family()
    family.architecture = "sd3"  # pyright: ignore[reportAttributeAccessIssue]
    change = fused_lokr(tmp_path / "x.safetensors", family)
    attention = family.denoiser.transformer_blocks[0].attn
    layers = (attention.to_q, attention.to_k, attention.to_v)
    expected = [layer.weight + part for layer, part in zip(layers, change.delta().chunk(3), strict=True)]
    group = weights.attach_file(family, tmp_path / "x.safetensors", name="x")
    live = family.denoiser(*mmdit_args(family))
    weights.save(group, "x", tmp_path / "y.safetensors")
    before, after = load_file(tmp_path / "x.safetensors"), load_file(tmp_path / "y.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    group.fuse()
    for layer, weight in zip(layers, expected, strict=True):
        assert torch.allclose(layer.weight, weight, atol=1e-5)
    assert torch.allclose(family.denoiser(*mmdit_args(family)), live, atol=1e-4)


KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "dora": (DoRA, {"rank": 2, "alpha": 3}),
    "dora of columns": (DoRA, {"rank": 2, "on_input": True}),
    "loha": (LoHa, {"rank": 2, "alpha": 0.3}),
    "loha tucker": (LoHa, {"rank": 2, "tucker": True}),
    "lokr": (TrainedLoKr, {"rank": 1, "alpha": 3, "factor": 2}),
    "lokr whole": (TrainedLoKr, {"rank": None}),
}


@pytest.mark.parametrize("model", ["sd", "sd3", None])
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_was_trained_comes_back_bit_by_bit_from_names_that_others_read(
    kind: str, model: str | None, tmp_path: Path
) -> None:
    make: Callable[[], Family] = mmdit_family if model == "sd3" else unet_family
    layers = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff"] if model == "sd3" else [Q, CONV]
    plugin, options = KINDS[kind]
    families = []
    for _ in range(2):
        families.append(make())
        families[-1].architecture = model
    group = attach(families[0], {"x": PluginSpec(plugin, layers=layers, options=options)})
    shake(group)
    weights.save(group, "x", tmp_path / "x.safetensors", {})
    keys = list(load_file(tmp_path / "x.safetensors"))
    prefix = {"sd": "lora_unet_", "sd3": "transformer." if kind == "dora" else "lycoris_", None: "transformer."}[model]
    assert all(key.startswith(prefix) for key in keys)
    again = weights.attach_file(families[1], tmp_path / "x.safetensors", name="x")
    assert type(next(iter(again.plugins("x").values()))) is plugin
    exact = kind != "dora" or model != "sd3"  # diffusers' form has alpha in the matrices, which here rounds
    for key, tensor in group.state_dict().items():
        assert (
            torch.equal(tensor, again.state_dict()[key]) if exact else torch.allclose(tensor, again.state_dict()[key])
        )
    other = options | ({"alpha": 7} if options["rank"] else {})
    into = attach(make(), {"x": PluginSpec(plugin, layers=layers, options=other)})
    into.family.architecture = model  # pyright: ignore[reportAttributeAccessIssue]
    weights.load_into(into, "x", tmp_path / "x.safetensors")
    for path, own in group.plugins("x").items():
        weight = families[0].get_submodule(path).weight
        assert torch.allclose(own.change().applied(weight), into.plugins("x")[path].change().applied(weight), atol=1e-5)
    if model is not None:
        found = reading.read(tmp_path / "x.safetensors", model).updates
        assert [names.canonical(path) for path in group.plugins("x")] == list(found)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="circular")])
def test_plugins_on_weights_fuse_and_take_strided_inputs(kind: str, layer: nn.Module) -> None:
    plugin, options = KINDS[kind]
    family = Family(nn.Sequential(copy.deepcopy(layer)))
    group = attach(family, {"x": PluginSpec(plugin, layers=["0"], options=options)})
    x = random(6, 4, 5, 2).transpose(0, 3) if isinstance(layer, nn.Linear) else random(9, 7, 6, 2).permute(3, 2, 0, 1)
    assert torch.equal(family.denoiser(x), layer(x)), "at first it changes nothing, to the last bit"
    shake(group)
    group.set_strength("x", 0.5)
    live = family.denoiser(x)
    assert torch.allclose(live, family.denoiser(x.contiguous()), atol=1e-5)
    group.fuse()
    assert torch.allclose(family.denoiser(x), live, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("on_input", [False, True])
def test_a_small_change_of_a_magnitude_is_seen_in_bfloat16(on_input: bool) -> None:
    family = Family(nn.Sequential(nn.Linear(8, 8, bias=False).to(torch.bfloat16)))
    group = attach(family, {"x": PluginSpec(DoRA, layers=["0"], options={"rank": 2, "on_input": on_input})})
    with torch.no_grad():
        group.state_dict()["x.denoiser.0.lora_magnitude_vector"].mul_(1.003)  # less than bfloat16's steps at 1
    (plugin,) = group.plugins("x").values()
    zero, x = torch.zeros(64, 8, dtype=torch.bfloat16), random(64, 8).to(torch.bfloat16)
    change = plugin(family.denoiser[0], (x,), {}, zero).float()
    assert torch.allclose(change, 0.003 * (x @ family.denoiser[0].weight.T).float(), rtol=0.05, atol=1e-4)


def test_dropout_of_a_dora_is_on_the_lora_alone() -> None:
    family = Family(nn.Sequential(nn.Linear(8, 8)))
    group = attach(family, {"x": PluginSpec(DoRA, layers=["0"], options={"rank": 2, "dropout": 0.5})})
    x = torch.ones(64, 8)
    assert torch.equal(family.denoiser(x), family.denoiser[0](x)), "without an effect there is nothing to drop"
    shake(group)
    assert len(family.denoiser(x).unique(dim=0)) > 2
    family.eval()
    assert len(family.denoiser(x).unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        (DoRA, {"rank": 2, "bias": True}, "DoRA has no such option"),
        (LoHa, {"rank": 2, "bias": True}, "LoHa has no such option"),
        (TrainedLoKr, {}, "LoKr needs it"),
        (TrainedLoKr, {"rank": None, "alpha": 1.0}, "alpha: it would do nothing without a rank"),
        (WeightChange, {"shapes": {"hada_w1_a": [8, 2]}}, "missing 3 required"),
        (WeightChange, {"shapes": {"diff": [8, 4]}}, r"Full does not fit a weight of \[8, 8\]"),
        (WeightChange, {"shapes": {"diff": [8, 8], "diff_b": [4]}}, "Full does not fit"),
    ],
)
def test_settings_that_cannot_be_meant_are_errors(plugin: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(Family(nn.Sequential(nn.Linear(8, 8))), {"x": PluginSpec(plugin, layers=["0"], options=options)})


def test_a_plain_lora_stays_a_lora(tmp_path: Path) -> None:
    change = Update(random(2, 8), random(8, 2), 1.0)
    save_file(kohya.module_tensors(f"lycoris_{Q.replace('.', '_')}", change), tmp_path / "x.safetensors")
    group = weights.attach_file(unet_family(), tmp_path / "x.safetensors")
    assert [type(plugin) for plugin in group.plugins("plugin").values()] == [LoRA]
