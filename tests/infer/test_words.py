"""Learned words of `infer.words`, and those within the files of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hcpdiff
from hcpdiff.config import ConfigError
from hcpdiff.formats.lora_files import read_tensors, write_tensors
from hcpdiff.infer.save import read_settings
from hcpdiff.models.text.words import Words
from hcpdiff.plugins import attach, weights
from tests.infer.test_generation import shaken
from tests.infer.test_infer import CONFIG
from tests.train import runs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, two words, a LoRA, and two LoRAs with another "cat" in each."""
    folder = tmp_path_factory.mktemp("files")
    family = runs.family()
    family.save_pretrained(folder / "sd3")
    Words.create(family, {"cat": "*[1, 2]", "dog": "*[1, 1]"}).save(folder / "words")
    weights.save(shaken(attach(family, {"style": runs.lora(lr=None)})), "style", folder / "words" / "style.safetensors")
    tensors, header = read_tensors(folder / "words" / "style.safetensors")
    for seed, name in enumerate(("one", "two"), 1):
        bundled = Words.create(family, {"cat": "*[1, 3]"}, seed=seed).bundled()
        write_tensors(folder / f"{name}.safetensors", {**tensors, **bundled}, header)
    save_file(tensors | Words.create(family, {"cat": "*[1, 3]"}, seed=1).bundled(), folder / "foreign.safetensors")
    return folder


@pytest.fixture
def picture(files: Path, tmp_path: Path) -> Any:
    """Makes the picture of "a cat" with some settings."""
    path = tmp_path / "infer.yaml"
    path.write_text(CONFIG.format(model=files / "sd3", out=tmp_path / "out"), encoding="utf-8")

    def make(prompt: str = "a cat", **changes: Any) -> bytes:
        (made,) = hcpdiff.infer(path, changes={"prompts": [prompt], **changes})
        assert read_settings(made.path)["words"] == changes.get("words", {})
        return made.image.tobytes()

    return make


def adapter(path: Path, strength: float = 1.0) -> Mapping[str, Any]:
    return {"path": str(path), "strength": strength}


def test_words_of_a_folder_a_file_or_by_name_are_read_in_prompts(files: Path, picture: Any) -> None:
    plain = picture()
    found = picture(words=str(files / "words"))
    assert found != plain
    assert picture("a tree") == picture("a tree", words=str(files / "words")), "a word that no prompt has does nothing"
    assert found == picture(words=str(files / "words" / "cat.safetensors"))
    assert found == picture(words={"cat": str(files / "words" / "cat.safetensors")})
    assert found == picture("a my-own", words={"my-own": [str(files / "words" / "cat.safetensors")]})
    assert found != picture(words={"cat": str(files / "words" / "dog.safetensors")})


def test_words_within_a_loras_file_come_with_it(files: Path, picture: Any) -> None:
    """Of a file that hcpdiff wrote and of one that another program did, which has no header."""
    plain = picture(adapters={"style": adapter(files / "words" / "style.safetensors")})
    one = picture(adapters={"style": adapter(files / "one.safetensors")})
    assert one != plain
    assert picture(adapters={"style": adapter(files / "foreign.safetensors")}) == one
    tree = picture("a tree", adapters={"style": adapter(files / "one.safetensors")})
    assert tree == picture("a tree", adapters={"style": adapter(files / "words" / "style.safetensors")})
    alone = {key: v for key, v in load_file(files / "one.safetensors").items() if key.startswith("bundle_emb.")}
    save_file(alone, files / "bundle.safetensors")
    assert picture(words=str(files / "bundle.safetensors")) != picture()


def test_two_words_of_one_name_are_an_error_unless_the_request_chooses(files: Path, picture: Any) -> None:
    both = {name: adapter(files / f"{name}.safetensors", 0.5) for name in ("one", "two")}
    with pytest.raises(
        ValueError, match=r"infer.adapters.two: its file has the word 'cat', and so has that of infer.ad"
    ):
        picture(adapters=both)
    first = picture(adapters=both, words={"cat": str(files / "one.safetensors")})
    assert first != picture(adapters=both, words={"cat": str(files / "two.safetensors")})
    assert first != picture(adapters=both, words={"cat": str(files / "words" / "cat.safetensors")})


def test_files_that_are_not_there_or_have_no_words_are_named(files: Path, picture: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"infer.words: no file or folder at .*nothing"):
        picture(words=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"infer.words.cat\[1\]: no file or folder at .*nothing"):
        picture(words={"cat": [str(files / "one.safetensors"), str(tmp_path / "nothing")]})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no \.safetensors, \.pt, \.bin file with learned words here"):
        picture(words=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"is no learned word"):
        picture(words={"cat": str(files / "words" / "style.safetensors")})
    save_file({"emb_params": torch.ones(1, 5)}, tmp_path / "cat.safetensors")
    with pytest.raises(ValueError, match=r"words.cat: vectors 5 wide fit none or several of clip_l 8, clip_g 16"):
        picture(words=str(tmp_path / "cat.safetensors"))
