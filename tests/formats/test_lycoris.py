"""What LyCORIS' own modules do, read here. Skipped where lycoris-lora is not installed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hcpdiff.formats import fused_changes, kohya, modules, names
from hcpdiff.formats.changes import AnyChange, Changes, mapped
from hcpdiff.formats.lora_files import Update
from hcpdiff.formats.lycoris import Full, LoHa, LoKr
from hcpdiff.formats.reading import parse, read
from tests.models.tiny_unet import tiny_sd, tiny_sdxl

theirs = pytest.importorskip("lycoris")

LAYER = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
LINEAR, CONV = lambda: nn.Linear(12, 16), lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1)
ALGOS: dict[str, tuple[str, dict[str, Any]]] = {  # {what: (class, options)}
    "locon": ("LoConModule", {}),
    "locon tucker": ("LoConModule", {"use_tucker": True}),
    "dora": ("LoConModule", {"weight_decompose": True}),
    "dora of columns": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "loha": ("LohaModule", {}),
    "loha tucker": ("LohaModule", {"use_tucker": True}),
    "loha dora": ("LohaModule", {"weight_decompose": True}),
    "lokr": ("LokrModule", {"factor": 2}),
    "lokr whole": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "lokr both low": ("LokrModule", {"factor": 4, "decompose_both": True, "lora_dim": 1}),
    "lokr tucker": ("LokrModule", {"factor": 2, "use_tucker": True}),
    "lokr dora": ("LokrModule", {"factor": 2, "weight_decompose": True, "wd_on_out": False}),
    "full": ("FullModule", {}),
    "glora": ("GLoRAModule", {}),
    "ia3": ("IA3Module", {}),
    "ia3 of inputs": ("IA3Module", {"train_on_input": True}),
    "oft": ("DiagOFTModule", {"lora_dim": 4}),
    "oft limited": ("DiagOFTModule", {"lora_dim": 4, "constraint": 0.01}),
    "oft rescaled": ("DiagOFTModule", {"lora_dim": 4, "rescaled": True}),
    "boft": ("ButterflyOFTModule", {"lora_dim": 6, "constraint": 0.02}),
}
OTHERWISE_BETWEEN = ("dora", "rescaled")  # there LyCORIS at 0 is not the layer as it was


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def made(algo: str, layer: nn.Module, multiplier: float = 1.0) -> nn.Module:
    kind, options = ALGOS[algo]
    torch.manual_seed(0)
    found = getattr(theirs.wrapper, kind)
    own = copy.deepcopy(layer)
    module = found("x", own, **{"multiplier": multiplier, "lora_dim": 2, "alpha": 1.0} | options)
    if algo == "full":  # before, its state is none of a file
        module.apply_to()
    return shaken(module).eval()


def change_of(module: nn.Module, family: str = "sd", name: str = f"lora_unet_{LAYER}") -> AnyChange:
    tensors = {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    (change,) = parse(tensors, {}, names.architecture(family), where="x").values()
    return change


def output(layer: nn.Module, x: Tensor, change: AnyChange, strength: float) -> Tensor:
    state = {"weight": change.applied(layer.weight, strength)}
    bias = change.applied_bias(layer.bias, strength)
    state |= {} if bias is None else {"bias": bias}
    return torch.func.functional_call(layer, state, (x,))


def inputs(layer: nn.Module) -> Tensor:
    shape = (2, 5, 12) if isinstance(layer, nn.Linear) else (2, 8, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("algo", list(ALGOS))
def test_every_form_does_what_it_does_in_lycoris(algo: str, layer: Callable[[], nn.Module], strength: float) -> None:
    torch.manual_seed(3)
    host = layer()
    module = made(algo, host, strength)
    change, x = change_of(module), inputs(host)
    assert not torch.allclose(output(host, x, change, 0.5), host(x), atol=1e-2)
    if strength == 1 or not any(word in algo for word in OTHERWISE_BETWEEN):
        assert torch.allclose(output(host, x, change, strength), module(x), atol=1e-5)  # fp32 sums in another order
    assert torch.allclose(output(host, x, change, 0.0), host(x), atol=1e-6)


def test_dora_between_0_and_1_is_between_the_two_outputs_and_lycoris_is_not_off_at_0() -> None:
    host = LINEAR()
    x, change = inputs(host), change_of(made("dora", host))
    half = (output(host, x, change, 0.0) + output(host, x, change, 1.0)) / 2
    assert torch.allclose(output(host, x, change, 0.5), half, atol=1e-5)
    assert not torch.allclose(made("dora", host, 0.0)(x), host(x), atol=1e-2)


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 8), nn.LayerNorm(8)])
def test_norms_change_as_in_lycoris(layer: nn.Module) -> None:
    shaken(layer, seed=2)
    module = shaken(theirs.wrapper.NormModule("x", layer, 0.5)).eval()
    change = change_of(module, name="lora_unet_down_blocks_0_resnets_0_norm1")
    x = torch.randn(3, 8)
    assert isinstance(change, Full)
    assert torch.allclose(output(layer, x, change, 0.5), module(x), atol=1e-5)


@pytest.mark.parametrize("algo", list(ALGOS))
def test_a_module_is_written_again_bit_by_bit(algo: str) -> None:
    module = made(algo, CONV())
    written = kohya.module_tensors("x", change_of(module))
    expected = {f"x.{key}": tensor for key, tensor in module.state_dict().items()}
    assert written.keys() == expected.keys()
    differ = [key for key, tensor in expected.items() if not torch.equal(written[key], tensor)]
    assert differ == (["x.alpha"] if algo == "lokr whole" and written["x.alpha"] == 1 else [])


@pytest.mark.parametrize("algo", [name for name in ALGOS if name not in ("boft", "dora of columns", "lokr dora")])
def test_a_fused_layer_comes_apart_and_together(algo: str) -> None:
    torch.manual_seed(5)
    host = nn.Linear(8, 24)
    module = made(algo, host)
    arch = names.architecture("sd3")
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    parts = parse(tensors, {}, arch, where="x")
    assert [layer.rpartition(".")[2] for layer in parts] == ["to_q", "to_k", "to_v"]
    weights = host.weight.chunk(3)
    change = change_of(module)
    own = [part.applied(weight, 0.5) for part, weight in zip(parts.values(), weights, strict=True)]
    assert torch.allclose(torch.cat(own), change.applied(host.weight, 0.5), atol=1e-5)
    again = kohya.write(parts, arch)
    assert again.keys() == tensors.keys()
    if "locon" not in algo and algo != "dora" and algo != "oft limited":  # their matrices are split otherwise
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items() if key != f"{name}.alpha")
    fused = modules.grouped(again)[0][name]
    assert torch.allclose(fused.applied(host.weight), change.applied(host.weight), atol=1e-5)


@pytest.mark.parametrize(
    ("algo", "message"), [("boft", "a BOFT that turns rows"), ("dora of columns", "magnitudes are those of columns")]
)
def test_what_cannot_be_parted_is_an_error(algo: str, message: str) -> None:
    module = made(algo, nn.Linear(8, 24))
    tensors = {f"lora_unet_joint_blocks_0_x_block_attn_qkv.{k}": t for k, t in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        parse(tensors, {}, names.architecture("sd3"), where="x")


def test_halves_that_the_original_has_the_other_way_round_are_exchanged() -> None:
    module = made("lokr", nn.Linear(8, 16))
    name = "lora_unet_final_layer_adaLN_modulation_1"
    tensors = {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
    arch = names.architecture("sd3")
    (change,) = parse(tensors, {}, arch, where="x").values()
    whole = modules.grouped(tensors)[0][name]
    assert isinstance(change, LoKr)
    assert isinstance(whole, LoKr)
    assert torch.equal(change.delta(), torch.cat(whole.delta().chunk(2)[::-1]))
    again = kohya.write({"denoiser.norm_out.linear": change}, arch)
    assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def merged(unet: nn.Module, updates: Changes) -> dict[str, Tensor]:
    """The weights with the updates in them."""
    weights = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    for layer, update in updates.items():
        path = layer.removeprefix("denoiser.")
        weights[f"{path}.weight"] = update.applied(weights[f"{path}.weight"])
        bias = update.applied_bias(weights.get(f"{path}.bias"))
        weights |= {} if bias is None else {f"{path}.bias": bias}
    return weights


# LyCORIS merges LoHa and LoKr with alpha / rank twice, so it is 1 here; otherwise it is tested above.
NETWORKS: list[dict[str, Any]] = [
    {"algo": "lora", "linear_alpha": 4, "conv_alpha": 3},
    {"algo": "lora", "use_tucker": True, "linear_alpha": 1, "conv_alpha": 3, "train_norm": True},
    {"algo": "loha", "linear_alpha": 4, "conv_alpha": 2},
    {"algo": "lokr", "linear_alpha": 4, "conv_alpha": 2, "factor": 4},
    {"algo": "full", "train_norm": True},
    {"algo": "glora", "linear_alpha": 1, "conv_alpha": 1},
    {"algo": "ia3"},
    {"algo": "diag-oft"},
    {"algo": "boft"},
    {"algo": "lora", "dora_wd": True, "linear_alpha": 1, "conv_alpha": 1},
]


@pytest.mark.parametrize(("model", "prefix"), [("sd", "lora_unet"), ("sdxl", "lycoris")])
@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: options["algo"])
def test_a_network_of_lycoris_changes_the_same_weights_here(
    options: dict[str, Any], model: str, prefix: str, tmp_path: Path
) -> None:
    unet = (tiny_sd() if model == "sd" else tiny_sdxl()).unet.requires_grad_(False)
    preset = {"enable_conv": True, "target_module": ["Transformer2DModel", "ResnetBlock2D"], "lora_prefix": prefix}
    theirs.LycorisNetwork.apply_preset(preset)
    theirs.wrapper.PRESET["small"] = preset
    network = theirs.create_lycoris(unet, 1.0, linear_dim=4, conv_dim=2, preset="small", **options)
    network.apply_to()  # only then it has parameters
    shaken(network)
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, tmp_path / "x.safetensors")
    network.restore()
    plain = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    found = read(tmp_path / "x.safetensors", model)
    assert len(found.updates) == len(network.loras) > 30
    ours = merged(unet, found.updates)
    network.merge_to(1.0)
    merged_there = unet.state_dict()
    assert sum(not torch.equal(merged_there[key], plain[key]) for key in plain) >= len(network.loras)
    assert all(torch.allclose(ours[key], merged_there[key], atol=1e-5) for key in plain)  # fp32 sums in another order


def test_a_bias_beside_a_lora_and_a_difference_alone_are_read() -> None:
    tensors = {
        f"lora_unet_{LAYER}.lora_down.weight": torch.ones(2, 4),
        f"lora_unet_{LAYER}.lora_up.weight": torch.ones(4, 2),
        f"lora_unet_{LAYER}.alpha": torch.tensor(1.0),
        f"lora_unet_{LAYER}.diff_b": torch.arange(4.0),
        "lora_unet_conv_in.diff": torch.ones(4, 4, 3, 3),
        "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.diff": torch.ones(7, 4),
    }
    found = parse(tensors, {}, names.architecture("sd"), where="x")
    q, conv, words = found.values()
    bias = q.applied_bias(torch.ones(4), 0.5)
    assert isinstance(q, Update)
    assert bias is not None
    assert torch.allclose(bias, 1 + 0.5 * torch.arange(4.0))
    assert torch.equal(conv.applied(torch.zeros(4, 4, 3, 3), 0.5), torch.full((4, 4, 3, 3), 0.5))
    assert torch.equal(words.applied(torch.zeros(7, 4)), torch.ones(7, 4))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hada_w1_a": torch.ones(1, 1)}, r"attn1_to_q \(hada_w1_a: missing 3 required"),
        ({"lokr_w1": torch.ones(1, 1)}, "a LoKr has either w2, or w2_a and w2_b"),
        ({"diff": torch.ones(1), "hada_w1_a": torch.ones(1)}, "diff does not belong to it"),
        ({"dora_scale": torch.ones(1, 1)}, "it says nothing of a weight"),
        ({"alpha": torch.ones(())}, "it says nothing of a weight"),
        ({"diff": torch.ones(1), "hada_w9": torch.ones(1)}, "1 mean no layer of sd: .*hada_w9"),
    ],
)
def test_modules_that_are_not_whole_are_errors(tensors: dict[str, Tensor], message: str) -> None:
    named = {f"lora_unet_{LAYER}.{key}": tensor for key, tensor in tensors.items()}
    with pytest.raises(ValueError, match=message):
        parse(named, {}, names.architecture("sd"), where="x")


def test_layers_that_learned_apart_do_not_fit_into_a_fused_one() -> None:
    q = change_of(made("loha", nn.Linear(8, 8)))
    k = mapped(q, lambda tensor: -tensor)
    assert isinstance(q, LoHa)
    assert fused_changes.joined([q, q, q], (1, 1, 1)).num_rows() == 24
    with pytest.raises(ValueError, match="differ in w1_b"):
        fused_changes.joined([q, k, q], (1, 1, 1))
    with pytest.raises(ValueError, match="changed in different ways"):
        fused_changes.joined([q, None, q], (1, 1, 1))
