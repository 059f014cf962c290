from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hcpdiff.formats import convert, detect, diffusers, kohya, metadata, names, peft, reading
from hcpdiff.formats.lora_files import Update, write_tensors

Q = "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
LAYERS = {
    "sd": [Q, Q.replace("to_q", "to_k"), "text_encoders.clip.text_model.encoder.layers.0.mlp.fc1"],
    "sdxl": [Q.replace("blocks.0", "blocks.1", 1), "text_encoders.clip_g.text_model.encoder.layers.0.mlp.fc1"],
    "sd3": [f"denoiser.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj")],
    "flux": ["denoiser.single_transformer_blocks.0.attn.to_q", "denoiser.single_transformer_blocks.0.proj_mlp"],
    "pixart": ["denoiser.transformer_blocks.0.attn2.to_q", "denoiser.transformer_blocks.0.attn2.to_k"],
    "zimage": ["denoiser.noise_refiner.0.attention.to_v", "denoiser.layers.0.feed_forward.w1"],
    "qwen_image": ["denoiser.transformer_blocks.59.attn.to_q", "denoiser.transformer_blocks.0.attn.to_add_out"],
}
WIDTH = {"sd": 768, "sdxl": 2048, "sd3": 1536, "flux": 3072, "pixart": 1152, "zimage": 3840, "qwen_image": 3072}


def lora(family: str, ranks: tuple[int, ...] = (4, 2), alpha: float = 1.0) -> dict[str, Update]:
    g, updates = torch.Generator().manual_seed(0), {}
    for i, layer in enumerate(LAYERS[family]):
        rank, width = ranks[i % len(ranks)], WIDTH[family]
        rows = 4 * width if layer.endswith("proj_mlp") else width
        updates[layer] = Update(torch.randn(rank, width, generator=g), torch.randn(rows, rank, generator=g), alpha)
    return updates


def same(a: Mapping[str, Update], b: Mapping[str, Update]) -> bool:
    return a.keys() <= b.keys() and all(
        torch.allclose(a[k].delta(), b[k].delta(), atol=1e-4) for k in a
    )  # values to 20


FORMS: list[convert.Target] = ["kohya", "diffusers", "peft", "comfyui", "webui"]


@pytest.mark.parametrize(
    ("family", "to"), [(f, to) for f in LAYERS for to in FORMS if f != "pixart" or to not in ("kohya", "webui")]
)
def test_every_form_comes_back_with_its_family_and_strength(family: str, to: convert.Target, tmp_path: Path) -> None:
    updates, start = lora(family), tmp_path / "start.safetensors"
    tensors, header = diffusers.write(updates, names.architecture(family))
    if family != "pixart":
        tensors, header = kohya.write(updates, names.architecture(family)), {}
    write_tensors(start, tensors, header | {"modelspec.title": "star"})
    written = convert.convert(start, to)
    assert written.parent == tmp_path
    back = reading.read(written, None if to != "peft" else family)
    assert back.family == family
    assert same(updates, back.updates)
    assert to == "peft" or back.header["modelspec.title"] == "star"
    zeros = back.updates.keys() - updates.keys()  # what a fused layer has besides
    assert not any(back.updates[layer].delta().any() for layer in zeros)


def test_pixart_has_no_form_of_kohyas(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", *diffusers.write(lora("pixart"), names.architecture("pixart")))
    with pytest.raises(ValueError, match="2 of 2 layers have no place in such a file"):
        convert.convert(tmp_path / "x.safetensors", "kohya")


@pytest.mark.parametrize(
    ("family", "key", "width"),
    [
        ("zimage", "lora_unet_layers_3_attention_qkv", 3840),
        ("zimage", "diffusion_model.layers.3.feed_forward.w2", 10240),
        ("zimage", "transformer.context_refiner.0.attention.to_q", 3840),
        ("qwen_image", "lora_unet_transformer_blocks_3_attn_to_q", 3072),
        ("qwen_image", "transformer_blocks.3.img_mod.1", 3072),
        ("qwen_image", "diffusion_model.transformer_blocks.30.attn.to_q", 3072),
        ("flux", "transformer.transformer_blocks.3.attn.to_q", 3072),
        ("flux", "diffusion_model.double_blocks.3.img_mod.lin", 3072),
        ("pixart", "transformer.transformer_blocks.3.attn1.to_v", 1152),
        ("pixart", "base_model.model.transformer_blocks.3.attn2.to_q", 1152),
        ("pixart", "diffusion_model.blocks.3.cross_attn.kv_linear", 1152),
        ("sd3", "transformer.transformer_blocks.3.attn2.to_q", 1536),
        ("sd", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 768),
        ("sdxl", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640),
    ],
)
def test_the_model_is_told_by_one_key(family: str, key: str, width: int) -> None:
    assert detect.family({f"{key}.lora_A.weight": torch.zeros(2, width)}) == family


def test_a_folder_that_peft_wrote_is_read(tmp_path: Path) -> None:
    theirs = pytest.importorskip("peft")
    block = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({n: torch.nn.Linear(6, 6) for n in ("to_q", "to_k")})})
    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([block])})
    config = theirs.LoraConfig(
        r=4, lora_alpha=1, rank_pattern={"to_k": 2}, target_modules=["to_q", "to_k"], init_lora_weights=False
    )
    wrapped = theirs.PeftModel(model, config)
    wrapped.save_pretrained(tmp_path / "adapter")
    read = reading.read(tmp_path / "adapter", "sd3")
    for name in ("to_q", "to_k"):
        layer = wrapped.base_model.model.transformer_blocks[0]["attn"][name]
        ours = read.updates[f"denoiser.transformer_blocks.0.attn.{name}"]
        assert torch.allclose(layer.get_delta_weight("default"), ours.delta(), atol=1e-6)


def test_peft_loads_the_folder_that_is_written(tmp_path: Path) -> None:
    theirs = pytest.importorskip("peft")
    updates = {
        f"denoiser.transformer_blocks.0.attn.{n}": Update(torch.randn(r, 6), torch.randn(6, r), 3.0)
        for n, r in (("to_q", 4), ("to_k", 2))
    }
    peft.write(tmp_path / "adapter", updates, names.architecture("sd3"))
    block = torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({n: torch.nn.Linear(6, 6) for n in ("to_q", "to_k")})})
    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([block])})
    wrapped = theirs.PeftModel.from_pretrained(model, tmp_path / "adapter")
    for path, update in updates.items():
        layer = wrapped.base_model.model.transformer_blocks[0]["attn"][path.rpartition(".")[2]]
        assert torch.allclose(layer.get_delta_weight("default"), update.delta(), atol=1e-5)


@pytest.mark.parametrize("dapp", ["", "lora:", "lora_ema:"])
def test_a_file_of_the_original_system_is_read_with_its_scale(dapp: str, tmp_path: Path) -> None:
    path = Q.removeprefix("denoiser.").replace("to_q", "to_k")
    down, up = torch.randn(4, 768), torch.randn(8, 4)
    start = f"{dapp}{path}.___."
    tensors = {f"{start}layer.W_down": down, f"{start}layer.W_up": up, f"{start}alpha": torch.tensor(0.25)}
    save_file(tensors, tmp_path / "unet-100.safetensors")
    read = reading.read(tmp_path / "unet-100.safetensors")
    assert (read.form, read.family) == ("original", "sd")
    assert torch.allclose(read.updates[f"denoiser.{path}"].delta(), 0.25 * up @ down, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"emb_params": torch.zeros(2, 768)}, "it holds a textual inversion"),
        ({"model.diffusion_model.out.2.weight": torch.zeros(1)}, "it holds a whole model"),
        ({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, "it holds 2 keys that end in 'weight'"),
    ],
)
def test_what_is_no_lora_is_called_what_it_is(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect.form(tensors, "x.safetensors")


def test_keys_without_a_meaning_are_all_listed_with_their_number(tmp_path: Path) -> None:
    tensors = kohya.write(lora("sd"), names.architecture("sd"))
    for name in ("lora_unet_odd_1", "lora_unet_odd_2"):
        tensors |= {f"{name}.lora_down.weight": torch.zeros(1, 1), f"{name}.lora_up.weight": torch.zeros(1, 1)}
    tensors["lora_unet_a.dora_scale"] = torch.zeros(1)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="3 layers are understood, but 3 mean no layer of sd: ") as error:
        reading.read(tmp_path / "x.safetensors")
    assert all(name in str(error.value) for name in ("lora_unet_odd_1", "lora_unet_odd_2", "lora_unet_a (dora_scale"))


def test_a_file_for_nobody_knows_what_wants_the_family(tmp_path: Path) -> None:
    layer = "text_encoders.clip_l.text_model.encoder.layers.0.mlp.fc1"
    one = {layer: Update(torch.zeros(2, 8), torch.zeros(8, 2))}
    write_tensors(tmp_path / "x.safetensors", kohya.write(one, names.architecture("sdxl")), {})
    with pytest.raises(ValueError, match="does not tell for which model it is; say it: sd, sdxl, sd3, flux, pixart, "):
        reading.read(tmp_path / "x.safetensors")
    assert layer in reading.read(tmp_path / "x.safetensors", "sdxl").updates


def test_a_form_that_cannot_hold_a_layer_says_so_and_writes_nothing(tmp_path: Path) -> None:
    update = Update(torch.zeros(2, 8), torch.zeros(8, 2), bias=torch.zeros(8))
    tensors, header = diffusers.write({Q: update}, names.architecture("sd"))
    write_tensors(tmp_path / "x.safetensors", tensors, header)
    with pytest.raises(ValueError, match="1 of 1 layers have no place in such a file"):
        convert.convert(tmp_path / "x.safetensors", "kohya", family="sd")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(ValueError, match="is the file that is converted"):
        convert.convert(tmp_path / "x.safetensors", "diffusers", out=tmp_path / "x.safetensors", family="sd")


def test_the_header_says_what_other_programs_look_for() -> None:
    fields = metadata.network(lora("sd3", ranks=(4,))) | metadata.model(
        metadata.variant("sd3", {"num_attention_heads": 24, "dual_attention_layers": (0, 1)}),
        title="star",
        date="2026-01-31T12:00:00",
        trigger_words=["a star", "blue"],
        resolution=(512, 768),
    )
    assert fields["ss_base_model_version"] == "5-medium"
    assert fields["modelspec.architecture"] == "stable-diffusion-3-5-medium/lora"
    assert (fields["ss_network_dim"], fields["ss_network_alpha"]) == ("4", "1")
    assert fields["modelspec.resolution"] == "768x512"
    assert fields["modelspec.trigger_phrase"] == "a star, blue"
    assert "modelspec.prediction_type" not in fields
    assert all(isinstance(value, str) for value in fields.values())
    known = metadata.variant("sd", {"cross_attention_dim": 768})
    mixed = metadata.network(lora("sd")) | metadata.model(known, title="star", prediction="epsilon", clip_skip=1)
    assert (mixed["ss_network_dim"], mixed["ss_base_model_version"]) == ("Dynamic", "sd_v1")
    assert (mixed["modelspec.prediction_type"], mixed["modelspec.encoder_layer"]) == ("epsilon", "2")
