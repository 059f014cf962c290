"""Single files that are pickles of torch: .ckpt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hcpdiff.formats import single_file
from hcpdiff.models.sd import StableDiffusion
from tests.formats.single_models import assert_same, state


@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_is_read_as_plain_tensors(made: Callable[[str], Path], tmp_path: Path, legacy: bool) -> None:
    root = made("sd1")
    shutil.copytree(root / "model", tmp_path / "model")
    content = {"state_dict": load_file(root / "model.safetensors"), "global_step": 7}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.ckpt")
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(root / "folder")))


@pytest.mark.parametrize("length", [0, 30, 9000])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_that_is_cut_off_is_named(tmp_path: Path, legacy: bool, length: int) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(5000)}, file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"model\.ckpt: no plain tensors \({length} bytes"):
        single_file.Model(file)


def test_a_ckpt_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callback": Boom()}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model\.ckpt: no plain tensors .*use the model's safetensors file"):
        StableDiffusion.from_pretrained(tmp_path / "model.ckpt")
    assert not Boom.ran


class Boom:
    """Says so if it is unpickled."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_boom, ())


def _boom() -> Boom:
    Boom.ran = True
    return Boom()
