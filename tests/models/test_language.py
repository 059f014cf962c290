"""What families with a language model read of a prompt, and how much each word counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hcpdiff.models import QwenImage, ZImage
from tests.models.tiny_qwen import tiny_qwen_image
from tests.models.tiny_zimage import tiny_zimage

FAMILIES: dict[str, tuple[Callable[[], Any], Any]] = {
    "Z-Image": (tiny_zimage, ZImage),
    "Qwen-Image": (tiny_qwen_image, QwenImage),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    make, family = request.param
    folder: Path = tmp_path_factory.mktemp("model")
    make().save_pretrained(folder)
    return lambda **options: family.from_pretrained(folder, text_tokens=64, **options)


@torch.no_grad()
def test_weights_are_on_all_tokens_of_their_words_and_signs_change_no_token(load: Callable[..., Any]) -> None:
    family = load(emphasis="webui")
    plain, mask, none = family._chat(["a red star", "blue"])
    ids, same_mask, weights = family._chat(["a (red:1.5) star", "blue"])
    assert none is None
    assert torch.equal(ids, plain)
    assert torch.equal(mask, same_mask)
    assert torch.equal(weights[1], torch.ones_like(weights[1]))
    assert set(weights[0].tolist()) == {1.0, 1.5}
    heavy = family.tokenizers["qwen"].decode(ids[0][weights[0] == 1.5])
    assert heavy.replace(" ", "") == "red"


@torch.no_grad()
def test_without_weights_emphasis_changes_nothing_and_without_emphasis_signs_are_text(load: Callable[..., Any]) -> None:
    weighing, reading = load(emphasis="webui"), load()
    prompts = ["a red star", "blue"]
    assert torch.equal(weighing.encode_prompt(prompts).tokens, reading.encode_prompt(prompts).tokens)
    assert weighing.text_settings != reading.text_settings
    weighed, text = (family.encode_prompt(["a (red:1.5) star"]) for family in (weighing, reading))
    assert weighed.mask.sum() < text.mask.sum()
    _, _, weights = weighing._chat(["a (red:1.5) star"])
    shown = weights[0, weighing.unseen :] == 1.5
    plain = weighing.encode_prompt(["a red star"]).tokens
    ratio = (weighed.tokens / plain)[0]
    kept = plain[0].abs() > 1e-4
    louder, others = ratio[shown][kept[shown]], ratio[~shown][kept[~shown]]
    torch.testing.assert_close(louder, louder[0].expand_as(louder))
    torch.testing.assert_close(louder[0] / others[0], torch.tensor(1.5))
