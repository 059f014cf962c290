"""Learned words: what they change, what they leave alone, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hcpdiff.models import SD3, SDXL, StableDiffusion
from hcpdiff.models.text.placeholders import substitute, with_words
from hcpdiff.models.text.words import Words, load_words
from hcpdiff.types import Conditioning
from tests.models.text.tokenizers import tiny_t5_tokenizer
from tests.models.tiny import tiny_pipeline
from tests.models.tiny_unet import tiny_sd, tiny_sdxl

pytest.importorskip("diffusers")

MAKERS = {
    "SD": (StableDiffusion, tiny_sd),
    "SDXL": (SDXL, tiny_sdxl),
    "SD3": (SD3, lambda: tiny_pipeline(t5=True)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (_, make) in MAKERS.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in MAKERS}


def load(folders: dict[str, Path], name: str, **settings: Any) -> Any:
    more = {"t5_tokens": 9} if name == "SD3" else {}
    return MAKERS[name][0].from_pretrained(folders[name], **more, **settings)


@pytest.fixture(params=MAKERS)
def family(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return load(folders, request.param)


def unlike(a: Conditioning, b: Conditioning) -> float:
    return (a.tokens - b.tokens).abs().max().item()


def same_vectors(a: Words, b: Words) -> bool:
    assert a.names == b.names
    return all(
        a.of(word).keys() == b.of(word).keys() and all(torch.equal(v, b.of(word)[e]) for e, v in a.of(word).items())
        for word in a.names
    )


@torch.no_grad()
def test_a_word_made_of_text_means_that_text(family: Any) -> None:
    wanted = family.encode_prompt(["a red up", "a", "re red"])
    words = Words.create(family, {"<my-cat>": "red", "x.y": "re, re"}).attach()
    found = family.encode_prompt(["a <my-cat> up", "a", "re red"])
    assert torch.equal(found.tokens, wanted.tokens)
    assert found.pooled is None or torch.equal(found.pooled, wanted.pooled)
    twice = family.encode_prompt(["<MY-CAT>, x.y<my-cat>"]).tokens
    words.detach()
    assert torch.equal(twice, family.encode_prompt(["red, re re red"]).tokens)


@torch.no_grad()
def test_words_are_read_among_weights_and_long_prompts(folders: dict[str, Path]) -> None:
    for name in MAKERS:
        family = load(folders, name, emphasis="webui", chunks=2)
        wanted = family.encode_prompt(["abcdefghi (red up:1.5)"])
        Words.create(family, {"cat": "red"}).attach()
        found = family.encode_prompt(["abcdefghi (cat up:1.5)"])
        assert torch.equal(found.tokens, wanted.tokens), "the word goes on in the next chunk, each token weighted"
        alone, text = (family.encode_prompt([f"({word}:1.5) a (b:0.5)"]).tokens for word in ("cat", "red"))
        assert torch.equal(alone, text), "all of its vectors count more, and what follows keeps its own weight"


@torch.no_grad()
def test_attaching_changes_prompts_with_the_word_alone_and_detaching_all_back(family: Any) -> None:
    prompts = ["a cat", "a dog", "concat cat2 my_cat"]
    before, state = family.encode_prompt(prompts), {k: v.clone() for k, v in family.state_dict().items()}
    tokenizers = dict(family.tokenizers)
    words = Words.create(family, {"cat": "*[0.5, 2]"}, seed=1).attach()
    during = family.encode_prompt(prompts)
    assert unlike(Conditioning(during.tokens[:1]), Conditioning(before.tokens[:1])) > 0.01
    assert torch.equal(during.tokens[1:], before.tokens[1:]), "within another word it is none"
    words.detach()
    assert torch.equal(family.encode_prompt(prompts).tokens, before.tokens)
    assert family.tokenizers == tokenizers
    now = family.state_dict()
    assert state.keys() == now.keys()
    assert all(torch.equal(value, now[key]) for key, value in state.items())


@torch.no_grad()
def test_random_vectors_have_their_deviation_and_follow_the_seed(family: Any) -> None:
    makers = {"one": "*[0.02, 500]", "two": "red, *[.5,3],*[1,1] up"}
    words, again, other = (Words.create(family, makers, seed=seed) for seed in (0, 0, 1))
    assert same_vectors(words, again)
    assert not same_vectors(words, other)
    for encoder, vectors in words.of("one").items():
        assert vectors.shape[0] == 500
        assert vectors.std().item() == pytest.approx(0.02, rel=0.05)  # of 4000 numbers
        table = family.text_encoders[encoder].get_input_embeddings().weight
        first = family.tokenizers[encoder]("red", add_special_tokens=False).input_ids
        last = family.tokenizers[encoder]("up", add_special_tokens=False).input_ids
        mixed = words.of("two")[encoder]
        assert len(mixed) == len(first) + 4 + len(last)
        assert torch.equal(mixed[: len(first)], table[first])
        assert torch.equal(mixed[-len(last) :], table[last])


def test_gradients_reach_the_vectors_of_words_in_the_prompt_and_nothing_else(family: Any) -> None:
    family.requires_grad_(False)
    words = Words.create(family, {"cat": "red", "dog": "*[0.1, 2]"}).attach()
    found = family.encode_prompt(["a cat a cat"])
    (found.tokens.square().sum() + (0 if found.pooled is None else found.pooled.square().sum())).backward()
    assert all(vectors.grad is not None and vectors.grad.abs().sum(1).all() for vectors in words.of("cat").values())
    assert not any(vectors.grad is not None and vectors.grad.any() for vectors in words.of("dog").values())
    assert all(parameter.grad is None for parameter in family.parameters())
    assert set(words.parameters()) == {parameter for word in words.names for parameter in words.of(word).values()}
    before = family.encode_prompt(["a dog"]).tokens
    torch.optim.SGD(words.parameters(), lr=1.0).step()
    assert torch.equal(family.encode_prompt(["a dog"]).tokens, before)
    assert unlike(family.encode_prompt(["a cat a cat"]), found) > 1e-4, "a step is seen at once"


@torch.no_grad()
def test_several_sets_of_words_can_be_attached_and_the_last_comes_off_first(family: Any) -> None:
    first = Words.create(family, {"cat": "red up"}).attach()
    second = Words.create(family, {"my-cat": "up"}).attach()
    found = family.encode_prompt(["cat my-cat"]).tokens
    with pytest.raises(ValueError, match="words: cat: first detach those that were attached later"):
        first.detach()
    with pytest.raises(ValueError, match=r"words\.Cat: the model has a learned word of this name already"):
        Words.create(family, {"Cat": "up"})
    with pytest.raises(ValueError, match=r"words\.x: 'a cat' has a learned word in it"):
        Words.create(family, {"x": "a cat"})
    with pytest.raises(ValueError, match="words: cat: attached already"):
        first.attach()
    second.detach()
    first.detach()
    with pytest.raises(ValueError, match="words: cat: not attached"):
        first.detach()
    Words.create(family, {"cat": "red up", "my-cat": "up"}).attach()
    assert torch.equal(found, family.encode_prompt(["cat my-cat"]).tokens), "as if all were attached at once"


def test_the_end_of_a_text_is_found_by_clips_of_old_configs(folders: dict[str, Path]) -> None:
    family = load(folders, "SDXL")
    family.text_encoders["clip_g"].text_model.eos_token_id = 2  # then it is where the largest id is
    wanted = family.encode_prompt(["a red up"]).pooled
    Words.create(family, {"cat": "red"}).attach()
    assert torch.equal(family.encode_prompt(["a cat up"]).pooled, wanted)


@torch.no_grad()
def test_t5s_tokenizer_and_a_table_that_is_larger_than_it_take_words() -> None:
    from transformers import T5Config, T5EncoderModel

    tokenizer = tiny_t5_tokenizer()
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer) + 9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    learned = with_words(tokenizer, {"my-cat": 2, "dog": 1})
    names = learned.convert_ids_to_tokens(learned("a My-Cat red dog").input_ids)
    assert [names[0], *names[3:4], *names[5:]] == ["▁a", "▁red", "</s>"]
    ids = torch.tensor([learned("a my-cat red dog").input_ids])
    assert (ids - len(tokenizer)).clamp(min=-1).tolist() == [[-1, 0, 1, -1, 2, -1]]
    undo = substitute(encoder.eval(), [vectors[:2], vectors[2:]], len(tokenizer))
    found = encoder(ids).last_hidden_state
    undo()
    embeds = encoder.shared(ids)
    embeds[0, 1:3], embeds[0, 4] = vectors[:2], vectors[2]
    assert torch.equal(found, encoder(inputs_embeds=embeds).last_hidden_state)


def test_a_model_that_is_saved_meanwhile_knows_nothing_of_the_words(family: Any, tmp_path: Path) -> None:
    family.save_pretrained(tmp_path / "before")
    Words.create(family, {"cat": "red"}).attach()
    family.save_pretrained(tmp_path / "during")
    for file in (tmp_path / "before").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "during" / file.relative_to(tmp_path / "before")).read_bytes()


@pytest.mark.parametrize("format", ["kohya", "onetrainer", "a1111", "diffusers", "bundle"])
def test_words_come_back_from_files_of_every_format(family: Any, format: Any, tmp_path: Path) -> None:
    words = Words.create(family, {"cat": "red up", "my-dog": "*[0.1, 3]"})
    written = words.save(tmp_path / "words", format)
    assert all(path.exists() for path in written)
    assert sorted(tmp_path.rglob("*.*")) == sorted(written)
    assert same_vectors(load_words(family, tmp_path / "words"), words)
    cats = [path for path in written if "my-dog" not in path.name]
    one = load_words(family, {"cat": cats})
    assert same_vectors(one, Words(family, {"cat": words.of("cat")}))


def test_the_keys_of_each_format_are_those_that_others_write(folders: dict[str, Path], tmp_path: Path) -> None:
    keys: dict[tuple[str, str], list[str]] = {}
    for name in MAKERS:
        words = Words.create(load(folders, name), {"cat": "red"})
        for format in ("kohya", "onetrainer", "diffusers", "bundle"):
            files = words.save(tmp_path / name / format, format)  # type: ignore[arg-type]
            keys[name, format] = sorted(key for file in files for key in load_file(file))
    assert keys == {
        ("SD", "kohya"): ["emb_params"],
        ("SD", "onetrainer"): ["emp_params"],
        ("SD", "diffusers"): ["cat"],
        ("SD", "bundle"): ["bundle_emb.cat.string_to_param.*"],
        ("SDXL", "kohya"): ["clip_g", "clip_l"],
        ("SDXL", "onetrainer"): ["clip_g", "clip_l"],
        ("SDXL", "diffusers"): ["cat", "cat"],
        ("SDXL", "bundle"): ["bundle_emb.cat.clip_g", "bundle_emb.cat.clip_l"],
        ("SD3", "kohya"): ["clip_g", "clip_l", "t5xxl"],
        ("SD3", "onetrainer"): ["clip_g", "clip_l", "t5"],
        ("SD3", "diffusers"): ["cat", "cat", "cat"],
        ("SD3", "bundle"): ["bundle_emb.cat.clip_g", "bundle_emb.cat.clip_l", "bundle_emb.cat.t5xxl"],
    }
    family = load(folders, "SD")
    (file,) = Words.create(family, {"cat": "red"}).save(tmp_path / "cat.pt", "a1111")
    content = torch.load(file, weights_only=True)
    assert (content["name"], list(content["string_to_param"]), content["step"]) == ("cat", ["*"], 0)


def test_words_are_found_within_a_lora_and_other_peoples_files(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = load(folders, "SDXL")
    words = Words.create(family, {"cat": "red"})
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 3)} | words.bundled(), tmp_path / "lora.safetensors")
    assert same_vectors(load_words(family, tmp_path / "lora.safetensors"), words)
    vectors = {encoder: vector.detach() for encoder, vector in words.of("cat").items()}
    save_file({**vectors, "clip_l_out": torch.ones(1, 8)}, tmp_path / "cat.safetensors")
    assert same_vectors(load_words(family, tmp_path / "cat.safetensors"), words)
    assert "clip_l_out is not read" in caplog.text
    single = load(folders, "SD")
    torch.save(vectors["clip_l"][0], tmp_path / "flat.pt")
    assert torch.equal(load_words(single, {"cat": tmp_path / "flat.pt"}).of("cat")["clip"], vectors["clip_l"][:1])
    torch.save({"string_to_param": {"*": nn.Parameter(vectors["clip_l"])}, "name": "other"}, tmp_path / "dog.pt")
    found = load_words(single, tmp_path / "dog.pt")
    assert found.names == ["dog"], "the web UI goes by the file's name"
    assert torch.equal(found.of("dog")["clip"], vectors["clip_l"])


@torch.no_grad()
def test_an_encoder_without_vectors_reads_the_name_and_this_is_said(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = load(folders, "SD3")
    save_file({"clip_l": torch.ones(1, 8), "clip_g": torch.ones(2, 16)}, tmp_path / "cat.safetensors")
    words = load_words(family, tmp_path / "cat.safetensors")
    assert "words.cat: no vectors for t5, which reads the name as text" in caplog.text
    before = family.encode_prompt(["a cat"]).tokens
    words.attach()
    after = family.encode_prompt(["a cat"]).tokens
    assert torch.equal(before[:, 12:], after[:, 12:])
    assert not torch.equal(before[:, :12], after[:, :12])


def test_mistakes_are_errors_that_say_what_is_right(folders: dict[str, Path], tmp_path: Path) -> None:
    family = load(folders, "SDXL")

    def fails(message: str, **words: str) -> None:
        with pytest.raises(ValueError, match=message):
            Words.create(family, {name.replace("0", " "): text for name, text in words.items()})

    fails("'my cat' is no name of a word; use one without spaces", my0cat="red")
    fails(r"words\.cat: ' , ' makes no vector; use a text such as 'cat', or", cat=" , ")
    fails(r"words\.cat: '\*\[0.02\]' is no noise; use e\.g\. '\*\[0.02, 2\]'", cat="*[0.02]")
    fails("cat, Cat: names that differ in case alone", cat="a", Cat="b")
    two = Words.create(family, {"a.b": "red", "c": "red"})
    for path, format, message in [
        ("x.safetensors", "kohya", "2 words do not go into one file of kohya; give a folder, or 'bundle'"),
        ("x", "bundle", r"words\.a\.b: a bundle's words have no dots"),
        ("x", "comfy", "format: 'comfy' is unknown; use kohya, onetrainer"),
    ]:
        with pytest.raises(ValueError, match=message):
            two.save(tmp_path / path, format)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"files of a1111 end with \.pt"):
        Words.create(family, {"c": "red"}).save(tmp_path / "c.safetensors", "a1111")
    with pytest.raises(FileNotFoundError, match="there is no such file of learned words"):
        load_words(family, tmp_path / "none.pt")

    def unreadable(content: dict[str, Tensor], message: str) -> None:
        save_file(content, tmp_path / "file.safetensors")
        with pytest.raises(ValueError, match=message):
            load_words(family, {"cat": tmp_path / "file.safetensors"})

    unreadable({"lora_unet.alpha": torch.ones(())}, r"'lora_unet\.alpha' of shape \(\) is no learned word")
    unreadable({"emb_params": torch.ones(1, 9)}, "vectors 9 wide fit none or several of clip_l 8, clip_g 16")
    unreadable({"clip_l": torch.ones(1, 9)}, r"vectors for clip_l have shape \(1, 9\); they should have \(n, 8\)")
    unreadable({"clip_l_out": torch.ones(1, 8)}, "there is no learned word in it")
    unreadable({"a": torch.ones(1, 8), "b": torch.ones(1, 8)}, r"words\.cat: .* has a, b; use one of these names")


def test_a_file_that_would_run_code_is_an_error_and_runs_none(folders: dict[str, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"string_to_param": {"*": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read, at least not without running code in it"):
        load_words(load(folders, "SD"), tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for name, message in {"torn.safetensors": "no whole safetensors file", "torn.pt": "cannot be read"}.items():
        with pytest.raises(ValueError, match=message):
            load_words(load(folders, "SD"), tmp_path / name)
