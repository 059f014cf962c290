"""Runs that learn words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hcpdiff.infer.generation import generate
from hcpdiff.infer.request import Request
from hcpdiff.models.text.words import Words, load_words
from hcpdiff.train.caching import Encoders, fill
from hcpdiff.train.fingerprints import of_tokenizer
from hcpdiff.train.objective import Objective
from hcpdiff.train.settings import EmaSettings, LayerGroup, PreviewSettings
from hcpdiff.train.trainer import Trainer
from hcpdiff.train.words import WordSpec, attach_words
from tests.models.tiny import tiny_tokenizer
from tests.train import runs

REQUEST = Request(prompts=["picture b"], size=(24, 24), steps=2, guidance=2)
WORD = {"picture": WordSpec(vectors=2, lr=1e-2)}


def learned(trainer: Trainer, word: str = "picture") -> dict[str, torch.Tensor]:
    return {name: vectors.detach().clone() for name, vectors in trainer.words.of(word).items()}


def test_a_word_alone_is_trained_at_its_own_rate_and_nothing_of_the_model_is(tmp_path: Path) -> None:
    trainer = runs.make(
        tmp_path, words=WORD | {"of": WordSpec(init="c")}, data={"main": runs.pictures(template=["{caption} of"])}
    )
    before, model = learned(trainer), {k: v.clone() for k, v in trainer.family.state_dict().items()}
    assert set(trainer.parameters) == {
        f"words.vectors.{e}.<{w}>" for e in ("clip_l", "clip_g") for w in ("picture", "of")
    }
    trainer.fit()
    after = learned(trainer)
    assert all((after[name] - before[name]).abs().min() > 0 for name in before), "each vector of each encoder"
    assert all(vectors.dtype == torch.float32 for vectors in after.values())
    assert all(torch.equal(value, model[key]) for key, value in trainer.family.state_dict().items())
    (line, *_) = runs.metrics(tmp_path)
    assert (line["lr/words.picture"], line["lr/words.of"]) == (1e-2, 1e-3), "the word's own and the optimizer's"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_flow_through_frozen_encoders_of_half_precision_to_words_in_float32(
    tmp_path: Path, precision: Any
) -> None:
    model = runs.family()
    model.text_encoders.bfloat16()
    trainer = runs.make(tmp_path, words=WORD, model=model, precision=precision)
    before = learned(trainer)
    trainer.fit()
    for name, vectors in learned(trainer).items():
        assert vectors.dtype == torch.float32
        assert (vectors - before[name]).abs().min() > 1e-3, "four steps of AdamW, of 1e-2 each"


def test_words_plugins_and_layers_learn_together(tmp_path: Path) -> None:
    finetune = [LayerGroup(layers=["norm_out"], lr=1e-4)]
    trainer = runs.make(tmp_path, words=WORD, plugins={"style": runs.lora()}, finetune=finetune)
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    trainer.fit()
    assert not any(torch.equal(p, before[name]) for name, p in trainer.parameters.items() if "lora_A" not in name)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors") == [
        "picture.safetensors",
        "style.safetensors",
    ]
    assert (tmp_path / "model").is_dir()


def test_what_a_run_leaves_is_its_average_in_the_form_that_most_programs_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer = runs.make(
            tmp_path, words=WORD | {"pic-c": WordSpec(init="b", train=False)}, ema=EmaSettings(decay=0.9)
        )
        trainer.fit()
    assert not (tmp_path / "pic-c.safetensors").exists(), "what is not trained is where it came from"
    file = load_file(tmp_path / "picture.safetensors")
    assert file.keys() == {"clip_l", "clip_g"}
    with trainer.averaged():
        assert all(torch.equal(file[name], vectors) for name, vectors in learned(trainer).items())
    assert not torch.equal(file["clip_l"], learned(trainer)["clip_l"])
    assert "picture.safetensors loads in: ComfyUI (as embedding:picture)" in caplog.text
    with safe_open(tmp_path / "picture.safetensors", "pt") as opened:
        header = opened.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-3-medium/textual-inversion"
    assert (header["modelspec.title"], header["hcpdiff.step"]) == ("picture", "4")


def test_previews_are_drawn_with_the_words(tmp_path: Path) -> None:
    preview = PreviewSettings(every=4, requests=[REQUEST])
    trainer = runs.make(tmp_path, words=WORD, preview=preview)
    trainer.fit()
    first, last = ((tmp_path / "previews" / f"step-00000{step}.png").read_bytes() for step in (0, 4))
    assert first != last
    family = runs.family()
    load_words(family, tmp_path / "picture.safetensors").attach()
    ours = generate(trainer.family, REQUEST)[0].image
    assert generate(family, REQUEST)[0].image.tobytes() == ours.tobytes()
    assert generate(runs.family(), REQUEST)[0].image.tobytes() != ours.tobytes()


def test_first_vectors_are_cut_or_repeated_and_noise_is_as_strong_as_the_encoders_words(tmp_path: Path) -> None:
    family = runs.family()
    specs = {
        "my-cut": WordSpec(init="red", vectors=2),
        "my-more": WordSpec(init="re", vectors=5),
        "my-text": WordSpec(init="red"),
        "my-noise": WordSpec(vectors=400, encoders=["clip_g"]),
        "my-one": WordSpec(),
    }
    words = attach_words(family, specs, seed=0)
    table = family.text_encoders["clip_g"].get_input_embeddings().weight
    r, e, d = (table[family.tokenizers["clip_g"]("red", add_special_tokens=False).input_ids[i]] for i in range(3))
    assert torch.equal(words.of("my-cut")["clip_g"], torch.stack([r, e]))
    assert torch.equal(words.of("my-text")["clip_g"], torch.stack([r, e, d]))
    last = table[family.tokenizers["clip_g"]("re", add_special_tokens=False).input_ids[1]]
    assert torch.equal(words.of("my-more")["clip_g"], torch.stack([r, last, r, last, r]))
    assert list(words.of("my-noise")) == ["clip_g"]
    assert words.of("my-noise")["clip_g"].std().item() == pytest.approx(table.std().item(), rel=0.05)  # of 6400
    assert words.of("my-one")["clip_l"].shape == (1, 8)
    words.save(tmp_path)
    other = {"my-new": WordSpec(path=str(tmp_path / "my-text.safetensors"), vectors=4, encoders=["clip_l"])}
    again = attach_words(runs.family(), other, seed=0).of("my-new")
    assert list(again) == ["clip_l"]
    assert torch.equal(again["clip_l"], words.of("my-text")["clip_l"][[0, 1, 2, 0]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"b": WordSpec()}, "words.b: clip_l knows this word already, .* use another name, e.g. 'my-b'"),
        (
            {"cat": WordSpec(encoders=["clip_1"])},
            r"words.cat.encoders: 'clip_1' is no text encoder of SD3; close names",
        ),
        ({"cat": WordSpec(init="*[3")}, r"words.cat: '\*\[3' is no noise"),
        ({"style": WordSpec()}, "words.style: the plugin 'style' has this name too"),
        ({"cat": WordSpec(), "Cat": WordSpec()}, "names that differ in case alone are one name"),
    ],
)
def test_what_does_not_fit_the_model_or_the_run_is_an_error(
    words: dict[str, WordSpec], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        runs.make(tmp_path, words=words, plugins={"style": runs.lora()})


def test_a_file_without_vectors_for_an_encoder_that_is_asked_for_is_an_error(tmp_path: Path) -> None:
    save_file({"clip_l": torch.ones(1, 8)}, tmp_path / "cat.safetensors")
    spec = WordSpec(path=str(tmp_path / "cat.safetensors"), encoders=["clip_l", "clip_g"])
    with pytest.raises(ValueError, match=r"words.cat.encoders: .*cat.safetensors has no vectors for clip_g"):
        attach_words(runs.family(), {"cat": spec}, seed=0)


def test_a_word_that_no_prompt_can_have_is_an_error_before_anything_is_cached(tmp_path: Path) -> None:
    data = {"main": runs.pictures(cache_latents="memory"), "other": runs.pictures(seed=1)}
    trainer = runs.make(tmp_path, words=WORD | {"sks": WordSpec(), "pic": WordSpec()}, data=data)
    with pytest.raises(
        ValueError, match=r"words.sks, pic: no positive prompt of data.main, data.other has it, so it would"
    ):
        trainer.fit()
    assert data["main"].latents is None
    runs.make(tmp_path / "rare", words=WORD, data={"main": runs.pictures(prompt_dropout=0.99)}, steps=1).fit()


def test_negative_prompts_count_in_runs_with_guidance_alone(tmp_path: Path) -> None:
    def run(name: str, **settings: Any) -> Trainer:
        data = {"main": runs.pictures(template=["a {word}"], word_names={"word": ["my-cat", "my-bad"]})}
        return runs.make(tmp_path / name, words={"my-bad": WordSpec(lr=1e-2)}, data=data, **settings)

    with pytest.raises(ValueError, match=r"words.my-bad: no positive prompt of data.main has it"):
        run("plain").fit()
    trainer = run("guided", guidance=3.0)
    before = learned(trainer, "my-bad")
    trainer.fit()
    assert not torch.equal(learned(trainer, "my-bad")["clip_l"], before["clip_l"])


def test_where_prompts_are_endless_a_missing_word_is_only_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"main": runs.pictures(caption_transforms=[lambda text, rng: f"{text} {rng.random()}"])}
    runs.make(tmp_path, words=WORD | {"sks": WordSpec()}, data=data, steps=1).fit()
    assert "words.sks: no positive prompt of data.main that was looked at has it" in caplog.text
    assert "words: 'sks'}]" in caplog.text


def test_text_can_be_cached_with_frozen_words_alone(tmp_path: Path) -> None:
    data = {"main": runs.pictures(cache_text="memory")}
    with pytest.raises(ValueError, match=r"data.main.cache_text: this run trains words, whose meaning changes"):
        runs.make(tmp_path, words=WORD, data=data).fit()
    frozen = {"picture": WordSpec(init="red", train=False)}
    results = []
    for name, cached in (("cached", "memory"), ("fresh", False)):
        data = {"main": runs.pictures(cache_text=cached)}
        runs.make(tmp_path / name, words=frozen, plugins={"style": runs.lora()}, data=data).fit()
        results.append(runs.metrics(tmp_path / name))
    plain = runs.make(tmp_path / "plain")
    plain.fit()
    assert [line["loss"] for line in results[0]] == pytest.approx([line["loss"] for line in results[1]], rel=1e-5)
    assert results[0][0]["loss"] != runs.metrics(tmp_path / "plain")[0]["loss"]


def another_vocabulary() -> Any:
    """The tiny tokenizer with two letters exchanged."""
    from transformers import CLIPTokenizer

    vocabulary = tiny_tokenizer().get_vocab()
    vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def test_a_cache_on_disk_knows_words_and_vocabularies(tmp_path: Path) -> None:
    """Each of these means something else by the same prompts, so none is served what another one has left."""

    def cached(change: Any) -> tuple[str, bool]:
        family, data = runs.family(), {"main": runs.pictures(cache_text="disk", cache_dir=tmp_path)}
        change(family)
        trainer = runs.make(tmp_path / "run", model=family, data=data)
        fill(trainer.objective, data, seed=0)
        text = data["main"].text
        assert text is not None
        prompt = "picture a"
        found = text.conditioning([prompt]).tokens  # what was filled, or what lay there
        full = [prompt] * 8  # always encoded as many at once
        same = torch.allclose(found, family.encode_prompt(full).tokens[:1], atol=1e-6)
        text.table.close()
        return Encoders(trainer.objective, trainer.accelerator.device).key("text_encoders", "disk"), same

    changes = [
        lambda family: None,
        lambda family: Words.create(family, {"picture": "red"}).attach(),
        lambda family: Words.create(family, {"picture": "rad"}).attach(),
        lambda family: Words.create(family, {"pictur": "red"}).attach(),
        lambda family: Words.create(family, {"Xpicture": "red"}).attach(),
        lambda family: family.tokenizers.update(clip_l=another_vocabulary()),
        lambda family: family.encode_prompt(["a", "b c"]),
    ]
    keys = []
    for change in changes:
        key, same = cached(change)
        keys.append(key)
        assert same
    assert keys[-1] == keys[0], "having been used changes nothing"
    assert len(set(keys)) == len(keys) - 1
    assert of_tokenizer(tiny_tokenizer()) == of_tokenizer(tiny_tokenizer()) != of_tokenizer(tiny_tokenizer(8))


def test_a_run_without_words_has_none(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path)
    assert isinstance(trainer.objective, Objective)
    assert not trainer.objective.text_trained
    assert trainer.words.names == []
