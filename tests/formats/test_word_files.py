"""Files of learned words from one form to another, and words within LoRAs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcpdiff.formats import reading, word_files
from hcpdiff.formats.convert import convert

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = {f"{NAME}.lora_down.weight": torch.ones(4, 768), f"{NAME}.lora_up.weight": torch.ones(320, 4)}
ONE = {"": torch.arange(1536.0).view(2, 768)}
TWO = {"clip_l": torch.arange(12.0).view(1, 12), "clip_g": torch.ones(2, 20)}


def same(found: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[word].keys() == wanted[word].keys() and all(torch.equal(found[word][e], t) for e, t in vectors.items())
        for word, vectors in wanted.items()
    )


@pytest.mark.parametrize("first", ["kohya", "onetrainer", "a1111", "diffusers", "bundle"])
@pytest.mark.parametrize("vectors", [ONE, TWO], ids=["one encoder", "two encoders"])
def test_a_word_goes_from_every_form_to_every_other(first: Any, vectors: dict[str, Tensor], tmp_path: Path) -> None:
    word_files.write({"my-cat": vectors}, tmp_path / "made", first)
    for to in ("kohya", "onetrainer", "a1111", "diffusers", "bundle"):
        written = word_files.convert(tmp_path / "made", to, tmp_path / to)
        found: dict[str, dict[str, Tensor]] = {}
        for path in written:  # diffusers has one for each text encoder
            for word, read in word_files.read(path).items():
                found.setdefault(word, {}).update(read)
        assert same(found, {"my-cat": vectors})
        assert all(path.suffix == (".pt" if to == "a1111" else ".safetensors") for path in written)


def test_the_default_place_keeps_the_words_name_which_programs_go_by(tmp_path: Path) -> None:
    save_file({"emb_params": ONE[""]}, tmp_path / "cat.safetensors")
    assert word_files.convert(tmp_path / "cat.safetensors", "a1111") == [tmp_path / "cat-a1111" / "cat.pt"]
    single = word_files.convert(tmp_path / "cat.safetensors", "diffusers", tmp_path / "token.safetensors")
    assert load_file(single[0]).keys() == {"cat"}


def test_words_are_taken_out_of_a_lora(tmp_path: Path) -> None:
    save_file(LORA | word_files.bundle({"cat": ONE}), tmp_path / "lora.safetensors")
    (written,) = word_files.convert(tmp_path / "lora.safetensors", "kohya", tmp_path)
    assert load_file(written).keys() == {"emb_params"}
    assert word_files.holds_bundle(tmp_path / "lora.safetensors")
    assert not word_files.holds_words(tmp_path / "lora.safetensors")
    assert word_files.holds_words(written)
    assert not word_files.holds_bundle(written)


def test_a_lora_with_words_in_it_is_a_lora_and_keeps_them_where_they_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(LORA | word_files.bundle({"cat": ONE}), path)
    assert reading.read(path).updates.keys() == {"denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"}
    assert same(word_files.read(convert(path, "webui")), {"cat": ONE})
    assert not caplog.text
    assert not word_files.holds_bundle(convert(path, "diffusers"))
    assert "lora.safetensors: the learned words in it are left out" in caplog.text


def test_a_folder_gives_its_words_and_tells_of_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(LORA, tmp_path / "lora.safetensors")
    with pytest.raises(FileNotFoundError, match="with learned words here"):
        word_files.in_folder(tmp_path)
    save_file({"emb_params": ONE[""]}, tmp_path / "cat.safetensors")
    with caplog.at_level(logging.INFO):
        assert word_files.in_folder(tmp_path) == [tmp_path / "cat.safetensors"]
    assert "there are no learned words in lora.safetensors" in caplog.text


def test_what_cannot_be_converted_is_an_error(tmp_path: Path) -> None:
    save_file({"emb_params": ONE[""]}, tmp_path / "cat.safetensors")
    with pytest.raises(ValueError, match="to: 'comfy' is no form of learned words; use one of kohya, onetrainer"):
        word_files.convert(tmp_path / "cat.safetensors", "comfy")
    torch.save({"string_to_param": {"*": ONE[""]}}, tmp_path / "cat.pt")
    with pytest.raises(ValueError, match="several files have vectors of 'cat'"):
        word_files.convert(tmp_path, "kohya")
    with pytest.raises(FileNotFoundError, match="there is no such file of learned words"):
        word_files.convert(tmp_path / "dog.safetensors", "kohya")
    with pytest.raises(ValueError, match="this is no LoRA of a known form; it holds a textual inversion"):
        reading.read(tmp_path / "cat.safetensors")


def test_a_text_encoder_that_no_form_has_a_key_for_is_the_only_one_of_its_model(tmp_path: Path) -> None:
    (written,) = word_files.write({"cat": {"qwen3": ONE[""]}}, tmp_path, "kohya")
    assert same(word_files.read(written), {"cat": ONE})
