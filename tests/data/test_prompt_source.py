from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hcpdiff.data import Dataset, FixedBucket
from hcpdiff.data.sources.base import Source
from hcpdiff.data.sources.prompts import PromptSource
from hcpdiff.train.settings import TrainSettings


def test_a_text_file_has_a_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa red cat\n\n  ein Bär \r\n", encoding="utf-8", newline="")
    source = PromptSource(tmp_path / "p.txt", size=64)
    assert isinstance(source, Source)
    assert not source.has_images
    assert [source.captions(i) for i in range(len(source))] == [["a red cat"], ["ein Bär"]]
    assert [source.key(i) for i in range(2)] == ["prompt-000000", "prompt-000001"]
    assert source.size(0) == (64, 64)
    assert source.sizes().tolist() == [[64, 64], [64, 64]]
    assert source.load(0).image is None
    assert source.fingerprint(0) == source.fingerprint(1)


def test_lists_and_mappings_are_prompts_too() -> None:
    assert PromptSource(["a", "b"], size=[32, 48]).size(1) == (32, 48)
    named = PromptSource({"cats": ["a cat", "cats"], "dog": "a dog"}, size=8, repeat=2)
    assert [(named.key(i), named.captions(i)) for i in range(2)] == [("cats", ["a cat", "cats"]), ("dog", ["a dog"])]
    assert named.repeat == 2


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: there is none"),
        ([3], {}, r"prompts\[0\]: 3 is no caption"),
        ({"a": {"b": "c"}}, {}, "prompts: 'a': .* is no caption"),
        (["a"], {"size": 0}, "size: 0 is no size"),
        (["a"], {"size": [1, 2, 3]}, "size: .* is no size"),
        (["a"], {"repeat": 0}, "repeat: 0 would show no image"),
    ],
)
def test_wrong_settings_are_named(prompts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSource(prompts, **{"size": 8, **options})


def test_a_missing_file_and_one_of_another_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prompts: no file at .*nope\.txt"):
        PromptSource(tmp_path / "nope.txt", size=8)
    (tmp_path / "p.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts: .*p\.txt is not UTF-8"):
        PromptSource(tmp_path / "p.txt", size=8)


def test_training_on_prompts_alone_is_an_error_before_it_starts() -> None:
    prompts = Dataset(PromptSource(["a cat"], size=8), FixedBucket(8), batch_size=1)
    settings = TrainSettings(steps=1, optimizer=torch.optim.SGD)
    with pytest.raises(ValueError, match=r"data\.words\.source: prompts alone cannot be trained on"):
        settings.check_datasets({"words": prompts})
