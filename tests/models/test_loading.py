"""Folders of models: what is read equals what diffusers and transformers read, and a wrong one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcpdiff.models import weights
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from tests.models.stock_families import FAMILIES, tensors

PARTS = [(name, path) for name, (family, _) in FAMILIES.items() for path in family.parts]


@pytest.fixture
def folder(stock: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> Path:
    """Of an SD3, to be damaged."""
    return Path(shutil.copytree(stock("sd3")[1], tmp_path / "model"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "path"), PARTS)
def test_a_part_is_what_the_stock_reader_gives(
    name: str, path: str, dtype: torch.dtype, stock: Callable[[str], tuple[Any, Path]]
) -> None:
    pipeline, root = stock(name)
    part = FAMILIES[name][0].parts[path]
    ours = part.kind.read(root / part.folder, dtype)
    theirs = type(getattr(pipeline, part.folder)).from_pretrained(root / part.folder, torch_dtype=dtype)
    found, expected = tensors(ours), tensors(theirs)
    assert found.keys() == expected.keys()
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in expected.items()}
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert not ours.training
    assert all(p.requires_grad for p in ours.parameters())


def test_without_a_dtype_every_weight_stays_as_its_file_has_it(folder: Path) -> None:
    file = folder / "text_encoder_3" / "model.safetensors"
    mixed = {k: v.to(torch.float32 if ".wo." in k else torch.float16) for k, v in load_file(file).items()}
    save_file(mixed, file, metadata={"format": "pt"})
    read: Any = SD3.from_pretrained(folder, dtype=None)
    state = read.text_encoders["t5"].state_dict()
    assert all(torch.equal(state[key], value) and state[key].dtype == value.dtype for key, value in mixed.items())


def test_tied_layers_stay_tied(folder: Path) -> None:
    encoder: Any = SD3.parts["text_encoders.t5"].kind.read(folder / "text_encoder_3", torch.float32)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_a_text_encoder_is_read_with_and_without_the_prefix_of_older_files(
    stock: Callable[[str], tuple[Any, Path]], tmp_path: Path, prefix: str
) -> None:
    part = StableDiffusion.parts["text_encoders.clip"]
    folder = shutil.copytree(stock("sd")[1] / part.folder, tmp_path / "clip")
    plain = {k.removeprefix("text_model."): v for k, v in load_file(folder / "model.safetensors").items()}
    more = {f"{prefix}embeddings.position_ids": torch.arange(12)[None], "text_projection.weight": torch.zeros(8, 8)}
    save_file({prefix + k: v for k, v in plain.items()} | more, folder / "model.safetensors")
    read = tensors(part.kind.read(folder, torch.float32))
    assert {key for key in plain if not torch.equal(plain[key], read[key])} == set()


def test_old_names_of_attention_in_a_vae_are_understood(
    stock: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    part = StableDiffusion.parts["vae"]
    folder = shutil.copytree(stock("sd")[1] / "vae", tmp_path / "vae")
    file = folder / "diffusion_pytorch_model.safetensors"
    before, names = load_file(file), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in before.items():
        for new, name in names.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{name}.")
        old[key] = tensor
    assert old.keys() != before.keys()
    save_file(old, file)
    read = part.kind.read(folder, torch.float32).state_dict()
    assert [key for key in before if not torch.equal(before[key], read[key])] == []


def test_weights_go_straight_to_the_device_that_is_named(folder: Path) -> None:
    with weights.onto("meta"):  # the one device besides the CPU that every machine has
        part = SD3.parts["denoiser"].kind
        with pytest.raises(AssertionError, match="transformer_blocks"):
            part.read(folder / "transformer", torch.float32)
    assert part.read(folder / "transformer", torch.float32).proj_out.weight.device.type == "cpu"


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def changed(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (WEIGHTS, lambda state: state.pop("proj_out.bias"), r"1 missing \(proj_out\.bias\); is config\.json of the"),
        (
            WEIGHTS,
            lambda state: state.update(more=torch.zeros(1)),
            r"expected (\d+) tensors, found \d+: 1 unknown \(more\)",
        ),
        (
            WEIGHTS,
            lambda state: state.update({"proj_out.bias": torch.zeros(3)}),
            r"transformer: .* MMDiT: proj_out\.bias has shape \(3,\); by config\.json it is \(16,\)",
        ),
        (
            WEIGHTS,
            lambda state: state.update({"proj_out.bias": torch.zeros(16, dtype=torch.int8)}),
            r"proj_out\.bias is of int8, so quantised; expected float32, bfloat16 or float16",
        ),
        (
            "text_encoder_2/model.safetensors",
            lambda state: state.pop("text_projection.weight"),
            r"text_encoder_2: the weights do not fit CLIPTextModelWithProjection: .* missing \(text_projection\.weight",
        ),
        (
            "vae/diffusion_pytorch_model.safetensors",
            lambda state: state.update({"encoder.conv_in.bias": torch.zeros(3)}),
            r"vae: .* AutoencoderKL: encoder\.conv_in\.bias has shape \(3,\); by config\.json it is \(4,\)",
        ),
    ],
    ids=["missing", "unknown", "shape", "quantised", "text", "vae"],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, file: str, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    changed(folder / file, change)
    with pytest.raises(ValueError, match=message):
        SD3.from_pretrained(folder)


def test_a_config_of_another_size_is_named(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_channels": 8}))
    with pytest.raises(ValueError, match=r"vae: .* has shape \(4,.*by config\.json it is \(8,|shape \(8.*is \(16"):
        SD3.from_pretrained(folder)


def test_a_truncated_file_is_named_with_both_lengths(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(
        ValueError, match=rf"model\.safetensors: .*\({len(whole) - 10} bytes\): by its header it has {len(whole)}"
    ):
        SD3.from_pretrained(folder)
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"\(100 bytes\): its header alone has \d+; download it again"):
        SD3.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_shard_that_is_missing_or_truncated_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    SD3.from_pretrained(folder).save_pretrained(tmp_path / "sharded", shard_size="20KB")
    shard = sorted((tmp_path / "sharded" / "transformer").glob("*-00002-of-*.safetensors"))[0]
    if damage == "missing":
        shard.unlink()
        with pytest.raises(FileNotFoundError, match=rf"transformer: no {shard.name} here, of \d+ that .*index\.json"):
            SD3.from_pretrained(tmp_path / "sharded")
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(ValueError, match=rf"{shard.name}: no whole safetensors file"):
            SD3.from_pretrained(tmp_path / "sharded")


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"text_encoder: no config\.json here"):
        SD3.from_pretrained(folder)
