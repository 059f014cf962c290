from __future__ import annotations

from pathlib import Path

import pytest

from hcpdiff.config import load
from hcpdiff.config.selectors import token_counter
from hcpdiff.formats import single_file
from hcpdiff.models import SD3
from tests.models.tiny import tiny_pipeline

TEXTS = ["", "a cat", "a cat on a sofa " * 50]


def test_tokens_are_counted_as_the_encoders_read_them_without_weights(tmp_path: Path) -> None:
    tiny_pipeline(t5=True).save_pretrained(tmp_path / "model")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        if weights.parent.name != "text_encoder_3":  # of a T5, the weights tell whether it is only a placeholder
            weights.unlink()
    counts = SD3.token_counts(TEXTS, tmp_path / "model", t5_tokens=8)
    assert list(counts) == ["clip_l", "clip_g", "t5"]
    assert counts["t5"][1] == 8
    assert SD3.token_counts(TEXTS, tmp_path / "model", t5=False).keys() == {"clip_l", "clip_g"}
    for lengths, limit in counts.values():
        assert lengths == sorted(lengths)
        assert lengths[0] <= 2  # what marks the ends
        assert lengths[1] < limit < lengths[2]


def test_a_single_file_takes_configs_and_tokenizers_from_a_folder(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "model.safetensors"
    tiny_pipeline(t5=False).save_pretrained(folder)
    single_file.save(SD3.from_pretrained(folder), file)
    assert SD3.token_counts(TEXTS, file, configs=folder) == SD3.token_counts(TEXTS, folder)
    assert SD3.latent_spec(file, configs=folder) == SD3.latent_spec(folder)
    with pytest.raises(ValueError, match="configs: only a single file takes them from elsewhere"):
        SD3.token_counts(TEXTS, folder, configs=folder)


def test_a_config_without_such_a_model_has_no_counter(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("name: x\nmodel: {_target_: hcpdiff.models.SD3.from_pretrained, path: hcpdiff/tiny-sd3}\n")
    count = token_counter(load(config))
    assert count is not None
    assert count(TEXTS) == SD3.token_counts(TEXTS, "hcpdiff/tiny-sd3")
    config.write_text("name: x\n")
    assert token_counter(load(config)) is None
