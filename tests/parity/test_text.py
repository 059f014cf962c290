"""Weighted and long prompts of all families against the stock pipelines, piece by piece, on random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.models import SD3, SDXL, StableDiffusion
from hcpdiff.models.text.words import Words, load_words
from hcpdiff.types import Conditioning
from tests.models.tiny import tiny_pipeline
from tests.models.tiny_unet import tiny_sd, tiny_sdxl

pytest.importorskip("diffusers")

TOLERANCE = 1e-5  # of the largest value: fp32 sums in another order
CHUNK = 12  # tokens of the tiny CLIPs


@dataclass(frozen=True)
class Kind:
    family: Any
    pipeline: Any
    folder: Path
    clip_l: slice  # of the features
    t5: bool = False

    def load(self, **settings: Any) -> Any:
        more = {"t5_tokens": 7} if self.family is SD3 else {}
        return self.family.from_pretrained(self.folder, **more, **settings)

    def stock(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Token features and the pooled vector of the stock pipeline."""
        if self.family is StableDiffusion:
            return self.pipeline.encode_prompt(prompts, "cpu", 1, False)[0], None
        if self.family is SDXL:
            found = self.pipeline.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
        else:
            found = self.pipeline.encode_prompt(
                prompts, None, None, max_sequence_length=7, do_classifier_free_guidance=False
            )
        return found[0], found[2]


MAKERS: dict[str, tuple[Any, Callable[[], Any], slice]] = {
    "SD": (StableDiffusion, tiny_sd, slice(0, 8)),
    "SDXL": (SDXL, tiny_sdxl, slice(0, 8)),
    "SD3 with T5": (SD3, lambda: tiny_pipeline(t5=True), slice(0, 8)),
}


@pytest.fixture(scope="module", params=MAKERS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    family, make, clip_l = MAKERS[request.param]
    pipeline, folder = make(), tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return Kind(family, pipeline, folder, clip_l, "T5" in request.param)


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def same(a: Conditioning, b: Conditioning) -> bool:
    pooled = (a.pooled is None and b.pooled is None) or torch.equal(a.pooled, b.pooled)  # type: ignore[arg-type]
    return torch.equal(a.tokens, b.tokens) and pooled


@torch.no_grad()
@pytest.mark.parametrize("emphasis", ["webui", "braces"])
@pytest.mark.parametrize("chunks", [1, "auto"])
def test_prompts_without_weights_are_bit_equal_whatever_the_settings(kind: Kind, emphasis: str, chunks: Any) -> None:
    prompts = ["a red star", "", "blue, sky"]
    plain = kind.load().encode_prompt(prompts)
    assert same(kind.load(emphasis=emphasis, chunks=chunks, **pooling(kind, "mean")).encode_prompt(prompts), plain)
    weighted = kind.load(emphasis=emphasis).encode_prompt([*prompts, "(a:1.5) {b:1.5}"])
    assert torch.equal(weighted.tokens[:2], plain.tokens[:2]), "nor does a neighbour in the batch"
    assert difference(weighted.tokens[2], plain.tokens[2]) <= TOLERANCE  # another batch size


def pooling(kind: Kind, value: str) -> dict[str, str]:
    return {} if kind.family is StableDiffusion else {"chunk_pooling": value}


@torch.no_grad()
def test_brackets_are_text_unless_emphasis_is_asked_for(kind: Kind) -> None:
    prompts = ["(red) [a]"]
    tokens, _ = kind.stock(prompts)
    assert (
        difference(kind.load().encode_prompt(prompts).tokens[..., kind.clip_l], tokens[..., kind.clip_l]) <= TOLERANCE
    )
    assert difference(kind.load(emphasis="webui").encode_prompt(prompts).tokens, tokens) > 0.01


@torch.no_grad()
def test_chunks_are_the_stock_features_of_their_texts_one_after_the_other(kind: Kind) -> None:
    ours = kind.load(emphasis="webui", chunks=3).encode_prompt(["abcde fghij klm no BREAK xyz", "a"])
    pieces = [kind.stock([first, second]) for first, second in [("abcde fghij", "a"), ("klm no", ""), ("xyz", "")]]
    wanted = torch.cat([tokens[:, :CHUNK] for tokens, _ in pieces], dim=1)
    assert difference(ours.tokens[:, : 3 * CHUNK], wanted) <= TOLERANCE
    assert ours.tokens.shape[1] == 3 * CHUNK + (7 if kind.t5 else 0)
    if kind.family is not StableDiffusion:
        pooled = [vector for _, vector in pieces]
        assert difference(ours.pooled, pooled[0]) <= TOLERANCE  # type: ignore[arg-type]
        mean = kind.load(emphasis="webui", chunks=3, chunk_pooling="mean")
        rows = mean.encode_prompt(["abcde fghij klm no BREAK xyz", "a"]).pooled
        assert difference(rows, torch.stack([sum(v[0] for v in pooled) / 3, pooled[0][1]])) <= TOLERANCE


@torch.no_grad()
def test_weights_scale_the_stock_features_of_each_encoder_as_in_the_web_ui(kind: Kind) -> None:
    stock, pooled = kind.stock(["a red star"])
    ours = kind.load(emphasis="webui").encode_prompt(["a (red:1.5) star"])
    weights = torch.ones(1, CHUNK)
    weights[0, 2:5] = 1.5  # after the start and "a"
    for width in [slice(0, 8), slice(8, 24)][: 1 if kind.family is StableDiffusion else 2]:
        before = stock[:, :CHUNK, width]
        after = before * weights[..., None]
        scale = (before.mean() / after.mean()).clamp(1 / 1.5, 1)
        assert difference(ours.tokens[:, :CHUNK, width], after * scale) <= TOLERANCE
    if kind.t5:  # the tiny one has CLIP's tokenizer
        weights = torch.tensor([[1, 1, 1.5, 1.5, 1.5, 1, 1]])
        before = stock[:, CHUNK:]
        after = before * weights[..., None]
        scale = (before.mean() / after.mean()).clamp(1 / 1.5, 1)
        assert difference(ours.tokens[:, CHUNK:], after * scale) <= TOLERANCE
    assert pooled is None or difference(ours.pooled, pooled) <= TOLERANCE


@torch.no_grad()
def test_long_and_weighted_prompts_are_encoded_one_by_one_or_together_alike(kind: Kind) -> None:
    prompts = ["a (red:1.3) star BREAK [b]", "", "abcdefghijklmnopqrst (uvw:0.5)"]
    for settings in ({"chunks": 2}, {"chunks": 4, **pooling(kind, "mean")}):
        family = kind.load(emphasis="webui", **settings)
        together = family.encode_prompt(prompts)
        joined = Conditioning.cat([family.encode_prompt([prompt]) for prompt in prompts])
        torch.testing.assert_close(together.tokens, joined.tokens, rtol=TOLERANCE, atol=TOLERANCE)
        if together.pooled is not None:
            torch.testing.assert_close(together.pooled, joined.pooled, rtol=TOLERANCE, atol=TOLERANCE)


@torch.no_grad()
def test_the_denoiser_takes_long_prompts(kind: Kind) -> None:
    family = kind.load(chunks="auto")
    conditioning = family.encode_prompt(["abcdefghijklmnopqrstu", "a"])
    assert conditioning.tokens.shape[1] >= 3 * CHUNK
    if kind.family is SDXL:
        conditioning = Conditioning(
            conditioning.tokens, pooled=conditioning.pooled, extras={"time_ids": torch.ones(2, 6)}
        )
    noisy = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    assert family.denoise(noisy, torch.tensor([100.0, 700.0]), conditioning).isfinite().all()


def test_what_depends_on_the_batch_cannot_be_trained(kind: Kind) -> None:
    family = kind.load(chunks="auto")
    assert not family.eval().training
    with pytest.raises(ValueError, match="chunks: 'auto' depends on the batch, so nothing can be trained with it"):
        family.train()
    assert kind.load(chunks=2).train().denoiser.training


def test_the_key_of_caches_tells_every_setting_apart(kind: Kind) -> None:
    settings = [{}, {"emphasis": "webui"}, {"emphasis": "braces"}, {"chunks": 2}, {"chunks": "auto"}, {"chunks": 12}]
    settings += [{"chunks": 2, **pooling(kind, "mean")}] if pooling(kind, "mean") else []
    assert len({kind.load(**one).text_settings for one in settings}) == len(settings)


def test_wrong_settings_are_errors(kind: Kind) -> None:
    with pytest.raises(ValueError, match="emphasis: 'a1111' is unknown; use 'none' or 'webui'"):
        kind.load(emphasis="a1111")
    with pytest.raises(ValueError, match="chunks: 0 is no number of chunks"):
        kind.load(chunks=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["cat", "<my-cat>"])
def test_the_stock_pipeline_reads_learned_words_and_means_the_same(kind: Kind, name: str, tmp_path: Path) -> None:
    if kind.family is SD3:
        pytest.skip("its stock pipeline reads no learned words")
    family = kind.load()
    words = Words.create(family, {name: "*[0.5, 3]", "dog": "red"})
    files = words.save(tmp_path, "diffusers")
    words.attach()
    pipeline = type(kind.pipeline).from_pretrained(kind.folder)
    for file in files:
        which = {"clip_l": ["tokenizer", "text_encoder"], "clip_g": ["tokenizer_2", "text_encoder_2"]}
        names = which.get(file.stem.rpartition(".")[2], which["clip_l"])
        parts = {part.removesuffix("_2"): getattr(pipeline, part) for part in names}
        pipeline.load_textual_inversion(str(file), **parts)
    prompts = [f"a {name} red", f"dog {name} {name}", "a"]
    tokens, pooled = Kind(kind.family, pipeline, kind.folder, kind.clip_l).stock(prompts)
    ours = family.encode_prompt(prompts)
    assert difference(ours.tokens, tokens) <= TOLERANCE
    assert pooled is None or difference(ours.pooled, pooled) <= TOLERANCE  # type: ignore[arg-type]
    words.detach()
    assert difference(family.encode_prompt(prompts).tokens, tokens) > 0.01


@torch.no_grad()
def test_learned_words_of_the_stock_pipelines_files_are_read(kind: Kind, tmp_path: Path) -> None:
    if kind.family is not StableDiffusion:
        pytest.skip("one encoder is enough")
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    torch.save({"<toy>": vectors}, tmp_path / "learned_embeds.bin")
    pipeline, family = type(kind.pipeline).from_pretrained(kind.folder), kind.load()
    pipeline.load_textual_inversion(str(tmp_path))
    load_words(family, tmp_path / "learned_embeds.bin").attach()
    wanted, _ = Kind(kind.family, pipeline, kind.folder, kind.clip_l).stock(["a <toy> up"])
    assert difference(family.encode_prompt(["a <toy> up"]).tokens, wanted) <= TOLERANCE
