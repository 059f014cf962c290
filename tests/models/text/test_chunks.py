"""Prompts to ids and weights in chunks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcpdiff.models.text.chunks import Tokens, encode, lengths, tokenize, tokenize_whole, weighted
from hcpdiff.models.text.reading import Reading
from hcpdiff.models.text.tokenize import token_ids
from tests.models.text.tokenizers import tiny_t5_tokenizer
from tests.models.tiny import tiny_tokenizer

pytest.importorskip("transformers")

CLIP, T5 = tiny_tokenizer(), tiny_t5_tokenizer()
START, END = 52, 53


def read(prompts: list[str], tokenizer: Any = CLIP, length: int = 12, **settings: Any) -> Tokens:
    reading = Reading(**{"emphasis": "webui"} | settings)
    if tokenizer is T5:
        return tokenize_whole(T5, prompts, length, reading)
    return tokenize({"clip": (tokenizer, length)}, prompts, reading)["clip"]


def pairs(tokens: Tokens, tokenizer: Any = CLIP) -> list[tuple[str, float]]:
    """Tokens and weights of the only prompt, without ends and padding."""
    assert len(tokens.ids) == 1
    ids = tokens.ids.flatten().tolist()
    weights = [1.0] * len(ids) if tokens.weights is None else tokens.weights.flatten().tolist()
    names = tokenizer.convert_ids_to_tokens(ids)
    shown = zip(names, (round(weight, 4) for weight in weights), strict=True)
    return [(name, weight) for name, weight in shown if name not in tokenizer.all_special_tokens]


def text(tokens: Tokens, row: int = 0) -> list[str]:
    """What is in each chunk of a row."""
    return [CLIP.decode(chunk, skip_special_tokens=True) for chunk in tokens.ids[row]]


def test_weights_are_on_all_tokens_of_their_words_and_on_no_other() -> None:
    assert pairs(read(["a (red:1.5) tie"])) == [
        ("a</w>", 1), ("r", 1.5), ("e", 1.5), ("d</w>", 1.5), ("t", 1), ("i", 1), ("e</w>", 1),
    ]  # fmt: skip
    assert pairs(read([" a  (red star:2)\n, up"], T5), T5) == [
        ("▁a", 1), ("▁red", 2), ("▁st", 2), ("ar", 2), ("▁", 1), (",", 1), ("▁", 1), ("u", 1), ("p", 1),
    ]  # fmt: skip
    assert pairs(read(["(a:2)(b:3)"])) == [("a</w>", 2), ("b</w>", 3)]


@pytest.mark.parametrize("tokenizer", [CLIP, T5], ids=["CLIP", "T5"])
@pytest.mark.parametrize(("marked", "plain"), [
    ("a (red:1.2) star", "a red star"),
    ("(a)  [red],(star)", "a  red,star"),
    ("re(d:2)", "re d"),
    ("a'(s:2)", "a' s"),
    ("", ""),
    ("(a red star and more than fits:1.1) in here", "a red star and more than fits in here"),
])  # fmt: skip
def test_signs_change_no_token(tokenizer: Any, marked: str, plain: str) -> None:
    wanted = token_ids(tokenizer, [plain], 12)
    assert torch.equal(read([marked], tokenizer).ids[:, 0], wanted)
    assert torch.equal(read([plain], tokenizer).ids[:, 0], wanted)
    assert read([plain], tokenizer).weights is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab (),:1.[]\\é!")), min_size=1, max_size=3))
def test_without_emphasis_every_sign_is_text(prompts: list[str]) -> None:
    tokens = read(prompts, emphasis="none", chunks=2)
    assert tokens.weights is None
    assert torch.equal(read(prompts, emphasis="none").ids[:, 0], token_ids(CLIP, prompts, 12))
    for row, prompt in zip(tokens.ids.tolist(), prompts, strict=True):
        body = CLIP(prompt, add_special_tokens=False, verbose=False).input_ids[:20]
        first, second = body[:10], body[10:]
        assert row == [[START, *part, *[END] * (11 - len(part))] for part in (first, second)]


def test_long_prompts_go_on_in_the_next_chunk_and_break_starts_one() -> None:
    tokens = read(["abcdefghijklm no", "a BREAK (b:2) BREAK", "c"], chunks=3)
    assert tokens.ids.shape == (3, 3, 12)
    assert [text(tokens, row) for row in range(3)] == [["abcdefghij", "klm no", ""], ["a", "b", ""], ["c", "", ""]]
    assert tokens.weights is not None
    assert tokens.weights[1].sum(-1).tolist() == [12, 13, 12]
    assert tokens.filled is not None
    assert tokens.filled.tolist() == [[True, True, False], [True, True, False], [True, False, False]]
    assert torch.equal(tokens.ids[2, 1:], token_ids(CLIP, ["", ""], 12)), "an empty chunk is an empty prompt"


def test_auto_takes_as_many_chunks_as_the_longest_prompt_of_any_encoder_needs() -> None:
    both = {"small": (CLIP, 12), "large": (CLIP, 7)}
    tokens = tokenize(both, ["abcdefg", "a"], Reading(chunks="auto"))
    assert {name: found.ids.shape for name, found in tokens.items()} == {"small": (2, 2, 12), "large": (2, 2, 7)}
    assert read(["a", ""], chunks="auto").ids.shape == (2, 1, 12)


def test_padding_is_the_tokenizers() -> None:
    other = tiny_tokenizer()
    other.pad_token = "a"
    assert read(["b BREAK c"], other, chunks=2).ids[0].tolist() == [
        [START, 27, END, *[0] * 9],
        [START, 28, END, *[0] * 9],
    ]


def test_what_is_cut_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hcpdiff"):
        for _ in range(2):
            read(["a BREAK b (cd) BREAK"])
            read(["abcdefghij klmnopqrst uv"], chunks=2)
    assert [record.getMessage().partition("prompt ")[2] for record in caplog.records] == [
        "'a BREAK b (cd) BREAK' is longer than 12 tokens; the text encoder does not see: 'b cd'",
        "'abcdefghij klmnopqrst uv' is longer than 2 chunks of 12 tokens; the text encoder does not see: 'uv'",
    ]


def test_break_is_a_space_to_an_encoder_that_reads_all_at_once() -> None:
    assert pairs(read(["a BREAK (red:2)"], T5), T5) == [("▁a", 1), ("▁red", 2)]


def test_lengths_are_those_of_the_text_without_signs() -> None:
    prompts = ["a (red) star", "", "a BREAK b"]
    assert lengths(CLIP, prompts, Reading("webui")) == [10, 2, 4]
    assert lengths(CLIP, prompts, Reading()) == [12, 2, 9]
    assert lengths(T5, [], Reading()) == []
    assert [Reading(chunks=n).limit(77) for n in (1, 3)] == [77, 227]


def test_weights_scale_features_and_their_mean_stays() -> None:
    features = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.ones(3, 5)
    weights[1, 2], weights[2] = 2, 0.5
    ours = weighted(features, weights)
    assert torch.equal(ours[0], features[0]), "not a bit where all weights are 1"
    torch.testing.assert_close(ours.mean((1, 2)), features.mean((1, 2)))
    ratio = ours[1] / features[1]
    torch.testing.assert_close(ratio[2], 2 * ratio[1])
    torch.testing.assert_close(ours[2], features[2]), "nothing counts more than the rest"
    assert weighted(features, None) is features
    assert weighted(features.half(), weights).dtype == torch.float16


def test_features_whose_mean_is_zero_do_not_explode() -> None:
    features = torch.randn(64, 7, 32, generator=torch.Generator().manual_seed(0))
    features -= features.mean((1, 2), keepdim=True) - 1e-6
    weights = torch.ones(64, 7)
    weights[:, 3] = 1.5
    scale = (weighted(features, weights) / features)[:, 0, 0]
    assert (scale >= 1 / 1.5 - 1e-6).all()
    assert (scale <= 1 + 1e-6).all()
    zeros = torch.zeros(64, 7, 32)
    assert torch.equal(weighted(zeros, weights), zeros)


def test_features_of_chunks_follow_each_other_and_the_first_is_pooled_or_the_mean_of_those_with_text() -> None:
    tokens = read(["a BREAK b", "c"], chunks=3)

    def encoder(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ids[..., None].float(), ids[:, 1:2].float()

    features, first = encode(tokens, encoder)
    assert torch.equal(features[..., 0], tokens.ids.flatten(1).float())
    assert first.tolist() == [[26], [28]]
    assert encode(tokens, encoder, pooling="mean")[1].tolist() == [[26.5], [28]]


@pytest.mark.parametrize(("settings", "message"), [
    ({"emphasis": "comfy"}, "emphasis: 'comfy' is unknown; use 'none' or 'webui' or 'braces'"),
    ({"chunks": 0}, "chunks: 0 is no number of chunks; use 1 or more, or 'auto'"),
    ({"chunks": "all"}, "chunks: 'all' is no number"),
    ({"pooling": "last"}, "chunk_pooling: 'last' is unknown; use 'first' or 'mean'"),
])  # fmt: skip
def test_wrong_settings_are_errors_that_say_what_is_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reading(**settings)


def test_a_limit_without_room_for_text_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 tokens hold no text"):
        tokenize_whole(T5, ["a"], 1, Reading("webui"))
