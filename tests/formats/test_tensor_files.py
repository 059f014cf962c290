"""Safetensors files that are read and written tensor by tensor, against safetensors' own library."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.opening import open_folder, open_weights
from hcpdiff.formats.tensor_files.writing import as_bytes, cast, given, write, write_folder


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(2, 2, 1, 3).bfloat16(),
        "eight": torch.randn(7).to(torch.float8_e4m3fn),
        "ids": torch.arange(4),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.zeros(0),
        'ünïcode "key"': torch.randn(4),
    }


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    state = tensors()
    write(tmp_path / "a" / "x.safetensors", given(state), {"format": "pt", "who": "é"})
    read = load_file(tmp_path / "a" / "x.safetensors")
    assert read.keys() == state.keys()
    assert all(same(read[key], state[key]) for key in state)
    with safe_open(tmp_path / "a" / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "é"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.safetensors"]


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    state = tensors()
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    file = open_weights(tmp_path / "x.safetensors")
    assert (file.files, file.metadata) == ((tmp_path / "x.safetensors",), {"format": "pt"})
    assert {key: (entry.dtype, entry.shape) for key, entry in file.tensors.items()} == {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()
    }
    assert all(same(file.read(key), state[key]) for key in state)
    assert same(file.read("half", rows=(1, 3)), state["half"][1:3])
    assert same(file.read("half", torch.float64, rows=(1, 2)), state["half"][1:2].double())
    assert same(file.read("nothing", torch.float16), state["nothing"].half())


def test_a_tensor_that_is_read_is_not_that_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    open_weights(tmp_path / "x.safetensors").read("a").zero_()
    assert open_weights(tmp_path / "x.safetensors").read("a").sum() == 4


def test_files_that_are_cut_off_or_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(64)}, path)
    whole = path.read_bytes()
    for content, message in [
        (b"", r"\(0 bytes\): it does not begin with a header"),
        (whole[:40], r"\(40 bytes\): its header alone has"),
        (whole[:-8], rf"\({len(whole) - 8} bytes\): by its header it has {len(whole)};"),
        (whole + b"1234", rf"\({len(whole) + 4} bytes\): by its header it has {len(whole)};"),
        (b"PK\x03\x04" + bytes(600), "does not begin with a header"),
        (whole.replace(b'"F32"', b'"F99"'), "'a' is not understood"),
        (whole[:8] + b"[" + whole[9:], "does not begin with a header"),
        (whole.replace(b":", b";"), "no JSON"),
        (whole.replace(b"[0,256]", b"[4,256]"), "the bytes of 'a' are not those of its shape"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_weights(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        open_weights(tmp_path / "y.safetensors")


def test_nothing_remains_of_a_file_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def no_more() -> Tensor:
        raise RuntimeError("no more")

    state = given({"a": torch.zeros(2)}) | {"b": Given(torch.float32, (2,), no_more)}
    with pytest.raises(RuntimeError, match="no more"):
        write(path, state)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_text() == "old"


def test_one_tensor_at_a_time_is_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def get(key: str, dtype: torch.dtype) -> Tensor:
        asked.append(key)
        return torch.zeros(2, dtype=dtype)

    dtypes = {key: torch.float16 if key < "c" else torch.float32 for key in "dcba"}
    state = {key: Given(dtype, (2,), partial(get, key, dtype)) for key, dtype in dtypes.items()}
    write(tmp_path / "x.safetensors", state)
    assert asked == ["c", "d", "a", "b"]


def test_a_big_part_is_written_in_files_that_its_libraries_find(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    write_folder(tmp_path, "model", given(state), shard_size=100)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    read = {key: load_file(tmp_path / file)[key] for key, file in index["weight_map"].items()}
    assert read.keys() == state.keys()
    assert all(same(read[key], state[key]) for key in state)


def test_a_part_is_opened_whatever_its_files_are_called(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.full((10,), float(i)) for i in range(5)}
    write_folder(tmp_path / "shards", "diffusion_pytorch_model", given(state), shard_size=100)
    write_folder(tmp_path / "one", "model", given(state))
    for name in ("shards", "one"):
        opened = open_folder(tmp_path / name)
        assert opened.shapes == dict.fromkeys(state, (10,))
        assert all(same(opened.read(key), state[key]) for key in state)
    (tmp_path / "shards" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002-of-00003\.safetensors here, of 3 that .*index\.json names"):
        open_folder(tmp_path / "shards")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.bin").touch()
    with pytest.raises(
        FileNotFoundError, match=r"no diffusion_.* or model\.safetensors here, but x\.bin, which is not"
    ):
        open_folder(tmp_path / "other")


def test_a_part_that_became_small_is_one_file_without_an_index(tmp_path: Path) -> None:
    write_folder(tmp_path, "model", given({"a": torch.ones(3), "b": torch.ones(3)}), shard_size=12)
    write_folder(tmp_path, "model", given({"a": torch.ones(3)}), shard_size=12)
    assert open_folder(tmp_path).tensors.keys() == {"a"}
    assert not list(tmp_path.glob("*.json"))


def test_floating_tensors_are_written_in_another_dtype(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "ids": torch.arange(3)}
    write(tmp_path / "x.safetensors", cast(given(state), torch.float16))
    read = load_file(tmp_path / "x.safetensors")
    assert same(read["a"], state["a"].half())
    assert same(read["ids"], state["ids"])


def test_a_size_has_a_unit_or_none() -> None:
    sizes = {"5GB": 5 * 10**9, "500 mb": 5 * 10**8, "1.5KiB": 1536, "12": 12, 12: 12}
    assert {size: as_bytes(size) for size in sizes} == sizes
    for wrong in ("0", "-1GB", "many", "5 TB"):
        with pytest.raises(ValueError, match="is no size of a file; use"):
            as_bytes(wrong)
