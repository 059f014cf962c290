"""The model that a run writes at its end, in the dtype and the layout that its config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hcpdiff.config import check, load
from hcpdiff.models.sd3.family import SD3
from hcpdiff.train.settings import ExportSettings, LayerGroup
from tests.train import runs

FINETUNE = [LayerGroup(layers=["norm_out"], lr=1e-3)]


def exported(folder: Path, **export: Any) -> Any:
    trainer = runs.make(folder, finetune=FINETUNE, steps=1, export=ExportSettings(**export))
    trainer.fit()
    return trainer


def test_a_model_is_written_in_the_dtype_and_the_shards_of_the_config(tmp_path: Path) -> None:
    trainer = exported(tmp_path, dtype="float16", shard_size="20KB")
    files = list((tmp_path / "model" / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}
    read = SD3.from_pretrained(tmp_path / "model", dtype=None).denoiser.state_dict()
    assert all(torch.equal(read[k], v.to(torch.float16)) for k, v in trainer.family.denoiser.state_dict().items())


def test_a_single_file_is_written_with_all_that_goes_with_it_beside_it(tmp_path: Path) -> None:
    trainer = exported(tmp_path, dtype="bfloat16", single_file=True)
    assert list((tmp_path / "model").rglob("*.safetensors")) == []
    read = SD3.from_pretrained(tmp_path / "model.safetensors", dtype=None, vae_dtype=None)
    assert read.tokenizers.keys() == trainer.family.tokenizers.keys()
    own = trainer.family.state_dict()
    assert all(torch.equal(tensor, own[key].to(torch.bfloat16)) for key, tensor in read.state_dict().items())


def test_export_without_finetune_is_an_error_of_the_config(tmp_path: Path) -> None:
    text = r"train\.export: no model is written, as only plugins are trained; leave it out, or add finetune"
    with pytest.raises(ValueError, match=text):
        runs.make(tmp_path, export=ExportSettings(dtype="float16"))
    config = load("cfgs/lora.yaml", ["+train.export={dtype: float16}"])
    assert [f"{mistake.key}: {mistake.text}" for mistake in check(config)] == [text.replace("\\", "")]
    assert check(load("cfgs/full_finetune.yaml", ["+train.export={dtype: float16, single_file: true}"])) == []


def test_what_cannot_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    model = runs.family()
    type(model).architecture, before = "pixart", type(model).architecture
    try:
        with pytest.raises(ValueError, match=r"train\.export\.single_file: pixart: there is no single file of this"):
            runs.make(tmp_path, model=model, finetune=FINETUNE, export=ExportSettings(single_file=True))
    finally:
        type(model).architecture = before
    plugins = {"model": runs.lora()}
    with pytest.raises(ValueError, match=r"plugins\.model: train\.export\.single_file writes model\.safetensors"):
        runs.make(tmp_path, plugins=plugins, finetune=FINETUNE, export=ExportSettings(single_file=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_size": "big"}, "shard_size: 'big' is no size of a file; use e.g. 5GB or 500MB"),
        ({"shard_size": "5GB", "single_file": True}, "shard_size: a single file has no shards"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportSettings(**settings)
