"""Safetensors files that are read and written tensor by tensor, against safetensors' own library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcpdiff.formats.tensor_files import Entry, TensorFile, write, write_folder


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


def entries(state: dict[str, Tensor]) -> dict[str, Entry]:
    return {key: Entry(tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()}


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    state = tensors()
    write(tmp_path / "a" / "x.safetensors", entries(state), state.__getitem__, {"format": "pt", "who": "é"})
    read = load_file(tmp_path / "a" / "x.safetensors")
    assert read.keys() == state.keys()
    assert all(same(read[key], state[key]) for key in state)
    with safe_open(tmp_path / "a" / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "é"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.safetensors"]


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    state = tensors()
    save_file(state, tmp_path / "x.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.entries == entries(state)
    assert all(same(file.get(key), state[key]) for key in state)
    assert same(file.get("half", (1, 3)), state["half"][1:3])


def test_a_tensor_that_is_read_is_not_that_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    TensorFile(tmp_path / "x.safetensors").get("a").zero_()
    assert TensorFile(tmp_path / "x.safetensors").get("a").sum() == 4


def test_files_that_are_cut_off_or_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(64)}, path)
    whole = path.read_bytes()
    for content, message in [
        (b"", r"\(0 bytes\): it does not begin with a header"),
        (whole[:40], "does not begin with a header"),
        (whole[:-8], "8 bytes are missing|not those of its shape"),
        (whole + b"1234", "4 bytes too many"),
        (b"PK\x03\x04" + bytes(600), "does not begin with a header"),
        (whole.replace(b'"F32"', b'"F99"'), "'a' is not understood"),
        (whole[:8] + b"[" + whole[9:], "no JSON"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            TensorFile(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        TensorFile(tmp_path / "y.safetensors")


def test_nothing_remains_of_a_file_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def get(key: str) -> Tensor:
        if key == "b":
            raise RuntimeError("no more")
        return torch.zeros(2)

    with pytest.raises(RuntimeError, match="no more"):
        write(path, {"a": Entry(torch.float32, (2,)), "b": Entry(torch.float32, (2,))}, get, {})
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_text() == "old"


def test_one_tensor_at_a_time_is_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def get(key: str) -> Tensor:
        asked.append(key)
        return torch.zeros(2, dtype=torch.float16 if key < "c" else torch.float32)

    shapes = {key: Entry(torch.float16 if key < "c" else torch.float32, (2,)) for key in "dcba"}
    write(tmp_path / "x.safetensors", shapes, get, {})
    assert asked == ["c", "d", "a", "b"]


def test_a_big_part_is_written_in_files_that_its_libraries_find(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.full((10,), float(i)) for i in range(5)}  # 40 bytes each
    paths = write_folder(tmp_path, "model", entries(state), state.__getitem__, {"format": "pt"}, shard=100)
    assert [path.name for path in paths] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 200}
    read = {key: load_file(tmp_path / file)[key] for key, file in index["weight_map"].items()}
    assert read.keys() == state.keys()
    assert all(same(read[key], state[key]) for key in state)


def test_a_small_part_is_one_file_without_an_index(tmp_path: Path) -> None:
    state = {"a": torch.ones(3)}
    write_folder(tmp_path, "model", entries(state), state.__getitem__, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
