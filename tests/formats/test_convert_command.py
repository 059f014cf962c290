"""`hcpdiff convert`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff import cli
from hcpdiff.models import open_model

LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def test_a_lora_is_written_in_another_form_and_wrong_ones_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = LORA
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, 768),
        f"{name}.lora_up.weight": torch.randn(320, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "cat.safetensors")
    assert cli.main(["convert", str(tmp_path / "cat.safetensors"), "--to", "diffusers"]) == 0
    written = tmp_path / "cat-diffusers.safetensors"
    assert capsys.readouterr().out == f"wrote {written}\n"
    prefix = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    result = load_file(written)
    ours = result[f"{prefix}.lora_B.weight"] @ result[f"{prefix}.lora_A.weight"]
    theirs = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] * 2 / 4
    torch.testing.assert_close(ours, theirs)
    assert cli.main(["convert", str(tmp_path / "cat.safetensors"), "--to", "paint"]) == 2
    assert "'paint' is no form; use one of kohya" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "dog.safetensors"), "--to", "kohya"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def files(tmp_path: Path, made: Callable[[str], Path]) -> Path:
    """A folder with lora.safetensors, cat.safetensors (a word), folder/ and model.safetensors (a model)."""
    save_file(
        {f"{LORA}.lora_down.weight": torch.ones(4, 768), f"{LORA}.lora_up.weight": torch.ones(320, 4)},
        tmp_path / "lora.safetensors",
    )
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "cat.safetensors")
    shutil.copytree(made("sd1") / "folder", tmp_path / "folder")
    shutil.copy(made("sd1") / "model.safetensors", tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("cat.safetensors --to a1111", "cat-a1111/cat.pt"),
        ("cat.safetensors --to diffusers", "cat-diffusers/cat.safetensors"),
        ("cat.safetensors --to bundle --out words.safetensors", "words.safetensors"),
        ("lora.safetensors --to diffusers", "lora-diffusers.safetensors"),
        ("folder --to single", "folder-single.safetensors"),
        ("model.safetensors --to folder --configs folder", "model-folder"),
        ("model.safetensors --to single --out small.safetensors --dtype float16", "small.safetensors"),
        ("folder --to folder --dtype fp16 --shard-size 20KB --out small", "small"),
    ],
)
def test_what_a_file_is_decides_what_becomes_of_it(
    files: Path, command: str, written: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert cli.main(["convert", *command.split()]) == 0
    assert capsys.readouterr().out == f"wrote {written}\n"
    assert Path(written).exists()


def test_words_of_a_folder_and_within_a_lora_are_written_each_to_its_file(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "words").mkdir()
    for word in ("cat", "dog"):
        shutil.copy(files / "cat.safetensors", files / "words" / f"{word}.safetensors")
    assert cli.main(["convert", str(files / "words"), "--to", "kohya", "--out", str(files / "out")]) == 0
    paths = [files / "out" / f"{word}.safetensors" for word in ("cat", "dog")]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in paths]
    bundled = load_file(files / "lora.safetensors") | {"bundle_emb.cat.string_to_param.*": torch.ones(1, 768)}
    save_file(bundled, files / "both.safetensors")
    assert cli.main(["convert", str(files / "both.safetensors"), "--to", "onetrainer", "--out", str(files)]) == 0
    assert load_file(files / "cat.safetensors").keys() == {"emp_params"}


def test_a_model_has_the_same_values_in_its_other_layout_and_the_dtype_asked_for(files: Path) -> None:
    file, folder = str(files / "model.safetensors"), str(files / "folder")
    arguments = ["convert", file, "--to", "folder", "--configs", folder, "--out", str(files / "again")]
    assert cli.main([*arguments, "--dtype", "bfloat16", "--shard-size", "20KB"]) == 0
    assert len(list((files / "again" / "unet").glob("*.safetensors"))) > 1
    before, after = (open_model(path, dtype=None, vae_dtype=None).state_dict() for path in (folder, files / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor.bfloat16()) for key, tensor in before.items())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("lora.safetensors --to kohya --dtype float16", "--dtype: lora.safetensors is converted as a LoRA, where it"),
        ("cat.safetensors --to kohya --family sd", "--family: cat.safetensors is converted as learned words, where"),
        ("folder --to single --family sd", "--family: folder is converted as a whole model, where it does nothing"),
        ("folder --to single --shard-size 5GB", "shard_size: folder-single.safetensors is a single file, for which"),
        ("folder --to folder --configs folder --out x", "configs: only a single file takes them from elsewhere"),
        ("folder --to kohya", "to: folder is a whole model, for which 'kohya' is no form; use folder or single"),
        ("model.safetensors --to peft", "to: model.safetensors is a whole model, for which 'peft' is no form"),
        ("cat.safetensors --to peft", "is learned words, for which 'peft' is no form; use kohya or onetrainer or"),
        ("cat.safetensors --to folder", "to: cat.safetensors is learned words, for which 'folder' is no form"),
        ("lora.safetensors --to single", "this is an adapter such as a LoRA"),
        ("lora.safetensors --to a1111", "lora_down.weight' of shape (4, 768) is no learned word"),
        ("folder --to single --out x.ckpt", "--out: x.ckpt: the name of a single file ends in .safetensors"),
        ("folder --to folder --out x.safetensors", "--out: x.safetensors is the name of a file"),
        ("folder --to folder --dtype int8 --out x", "'int8' is no floating dtype; use float32"),
        ("folder --to folder --shard-size 5TB --out x", "shard_size: '5TB' is no size of a file"),
        ("folder --to single --out model.safetensors", "out: model.safetensors is there already"),
        ("nowhere --to single", "--out: say where to; there is no file or folder at nowhere"),
        ("nowhere --to single --out x.safetensors", "no folder at nowhere"),
        ("nowhere.pt --to a1111", "there is no such file of learned words"),
    ],
)
def test_wrong_uses_are_one_line_and_write_nothing(
    files: Path, command: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    assert cli.main(["convert", *command.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert sorted(files.rglob("*")) == before
