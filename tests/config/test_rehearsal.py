"""Values of the right type that only a constructor, or the model, can refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from hcpdiff.config.checking import check
from hcpdiff.config.loading import load

TEXT = r"""
name: real
seed: 0
model: {_target_: hcpdiff.models.SD3.from_pretrained, path: hcpdiff/tiny-sd3}
data:
  main:
    source: {_target_: hcpdiff.data.FolderSource, path: images}
    bucket: {_target_: hcpdiff.data.RatioBucket, area: 4096}
    batch_size: 1
plugins:
  style:
    _target_: hcpdiff.plugins.LoRA
    on: [denoiser, text_encoders]
    layers: ['re:transformer_blocks\.\d+\.attn\.to_q', 're:.*self_attn\.q_proj']
    rank: 16
train:
  steps: 10
  optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
  preview: {every: 10, requests: [{prompts: [a], size: [64, 64]}]}
infer:
  prompts: [a cat]
  size: [64, 64]
"""
Lines = Callable[..., list[str]]


@pytest.fixture
def lines(write) -> Lines:
    """The mistakes of a config of a real run, with these overrides."""
    (write("images/a.txt", "a cat").parent / "empty").mkdir()
    Image.new("RGB", (64, 64)).save("images/a.png")
    write("my.yaml", TEXT)

    def lines_of(*overrides: str, selectors: bool = False) -> list[str]:
        return [str(mistake) for mistake in check(load("my.yaml", overrides), selectors=selectors)]

    return lines_of


def test_the_config_itself_is_right(lines: Lines) -> None:
    assert lines(selectors=True) == []


@pytest.mark.parametrize(
    ("override", "mistake"),
    [
        ("words.my-cat={lrr: 1}", "words.my-cat.lrr: words.my-cat takes no such argument; did you mean 'lr'?"),
        ("words.my-cat={lr: 0}", "words.my-cat.lr: 0 is out of range; use more than 0"),
        ("words.my-cat={vectors: 0}", "words.my-cat.vectors: 0 is out of range; use 1 or more"),
        ("words.my-cat={path: no.pt}", "words.my-cat.path: no file at no.pt; "),
        ("words.my-cat={path: [images/a.txt, no.pt]}", "words.my-cat.path[1]: no file at no.pt; "),
        (
            "words.my-cat={path: images/a.txt, init: cat}",
            "words.my-cat.init: the word starts from the file in `path`; ",
        ),
        ("words.my-cat={train: false}", "words.my-cat.train: a word that learns nothing and starts from nothing is "),
        ("words.my-cat={init: cat, train: false, lr: 1}", "words.my-cat.lr: it would do nothing, because train is "),
        ("words.my-cat={encoders: []}", "words.my-cat.encoders: the list is empty; leave it out"),
        ("words={my cat: {}}", "words: 'my cat' is no name of a word; use one without spaces and commas"),
        ("words={3: {}}", "words: 3 is not text; write it in quotes"),
        ("words={a/b: {}}", "words.a/b: its file is called like it, so it can have no slash; use another name"),
        (
            "words.Style={}",
            "words.Style: the plugin 'style' has this name too, and both would be written to Style.safet",
        ),
        ("plugins.style.rank=0", "plugins.style.rank: 0 is out of range; use 1 or more"),
        ("plugins.style.rank=-3", "plugins.style.rank: -3 is out of range; use 1 or more"),
        ("plugins.style.rank=1.5", "plugins.style.rank: 1.5 is out of range; use more than 0 and 1 or less"),
        ("plugins.style.dropout=2", "plugins.style.dropout: 2 is out of range; use 0 or more and less than 1"),
        ("plugins.style.alpha=-1", "plugins.style.alpha: -1 is out of range; use more than 0"),
        ("data.main.template=nofile.txt", "data.main.template: no file at nofile.txt; "),
        ("data.main.source.captions=nope", "data.main.source.captions: nothing at nope; "),
        ("data.main.source.path=images/empty", "data.main.source.path: no images in images/empty; "),
        ("data.main.variants=3", "data.main.variants: all 3 would be equal"),
        ("data.main.weight=2", "data.main.weight: it is for mode 'mix'"),
        ("data.main.loss_weight=0", "data.main.loss_weight: 0 for every dataset would train nothing; "),
        ("train.guidance=1", "train.guidance: at 1 the negative prompt counts for nothing; "),
        ("train.optimizer.lr=-1", "train.optimizer.lr: -1 would train nothing; use a number above 0"),
        ("train.optimizer.lr=0", "train.optimizer.lr: 0 would train nothing; use a number above 0"),
        ("train.optimizer.eps=-1", "train.optimizer: torch.optim.AdamW: Invalid epsilon value: -1"),
        ("train.preview.requests.0.prompts=[]", "train.preview.requests[0].prompts: the list is empty; "),
        ("train.preview.requests.0.prompts=a cat", "train.preview.requests[0].prompts: 'a cat' is not a list of "),
        ("infer.prompts=[]", "infer.prompts: the list is empty; "),
        ("infer.prompts=a cat", "infer.prompts: 'a cat' is not a list of "),
        ("infer.seed=99999999999999999999", "infer.seed: 99999999999999999999 is out of range; use 0 to "),
        ("infer.adapters={a: {path: my.yaml, strength: []}}", "infer.adapters.a.strength: the list is empty; "),
        ("model.dtype=float99", "model.dtype: 'float99' is no dtype; did you mean 'float32'?"),
        ("model.vae_dtype=no", "model.vae_dtype: 'no' is no dtype; use float32, bfloat16 or float16"),
        ("model.t5_tokens=0", "model.t5_tokens: 0 is out of range; use 1 or more"),
        ("seed=null", "seed: null is not a whole number"),
        ("name=null", "name: null is not text"),
        ("exp_dir=null", "exp_dir: null is not text"),
    ],
)
def test_what_would_stop_a_run_later_is_a_mistake(lines: Lines, override: str, mistake: str) -> None:
    found = lines(override)
    assert len(found) == 1
    assert mistake in found[0]


def test_a_cache_of_endless_crops_is_a_mistake_at_its_key(lines: Lines) -> None:
    [line] = lines("data.main.flip=0.5", "data.main.cache_latents=memory")
    assert line.startswith("override: data.main.cache_latents: crops, flips or transforms that are drawn afresh")


def test_mistakes_of_all_sections_are_found_at_once(lines: Lines) -> None:
    found = lines("data.main.source.path=images/empty", "train.optimizer.lr=-1", "infer.prompts=[]")
    assert [line.split(": ")[1] for line in found] == ["infer.prompts", "data.main.source.path", "train.optimizer.lr"]


def test_settings_beside_code_that_is_not_called_are_looked_at(lines: Lines) -> None:
    unknown = "data.main.transforms={_target_: albumentations.HorizontalFlip}"
    assert lines(unknown) == []
    [line] = lines(unknown, "data.main.template=nofile.txt")
    assert "data.main.template: no file at nofile.txt" in line


@pytest.mark.parametrize(
    "override",
    [
        "plugins.style.rank=0.5",
        "plugins.style.rank=8.0",
        "~plugins.style",
        "train.guidance=2",
        "model.dtype=bf16",
        "data.main.source={_replace_: true, _target_: hcpdiff.data.Scenes, count: 2}",
        "train.loss={_target_: torch.nn.L1Loss}",
        "train.optimizer={_target_: hcpdiff.train.optimizers.Muon}",
        "train.loggers=[{_target_: hcpdiff.train.TensorBoard}]",
    ],
)
def test_what_is_right_stays_right(lines: Lines, override: str) -> None:
    assert lines(override) == []


def test_sizes_that_the_model_cannot_make_are_mistakes(lines: Lines) -> None:
    found = lines("infer.size=[50,50]", "train.preview.requests.0.size=[50,64]", selectors=True)
    assert found == [
        "override: train.preview.requests[0].size: [50, 64] does not divide by 8, as this model needs; use [48, 64]",
        "override: infer.size: [50, 50] does not divide by 8, as this model needs; use [48, 48]",
    ]


def test_a_model_that_is_not_there_is_a_mistake_without_plugins_too(lines: Lines) -> None:
    [line] = lines("~plugins.style", "model.path=./gone", selectors=True)
    assert line.startswith("override: model.path: ")
    assert "gone" in line


@pytest.mark.parametrize(
    ("overrides", "lines_expected"),
    [
        (["data.main.cache_text=memory"], ["data.main.cache_text: this run changes a text encoder"]),
        (
            ["data.main.cache_text=memory", "~plugins", "words.my-cat={}"],
            ["data.main.cache_text: this run trains words, whose meaning changes; set it to false"],
        ),
        (["data.main.cache_text=memory", "~plugins", "words.my-cat={init: cat, train: false}"], []),
        (["data.main.cache_text=memory", "plugins.style.on=denoiser", r"plugins.style.layers=['re:.*to_q']"], []),
        (
            ["data.main.cache_latents=memory", "finetune=[{on: vae, layers: ['']}]"],
            ["data.main.cache_latents: this run changes the VAE"],
        ),
    ],
)
def test_a_cache_of_what_the_run_changes_is_a_mistake(
    lines: Lines, overrides: list[str], lines_expected: list[str]
) -> None:
    found = lines(*overrides, selectors=True)
    assert len(found) == len(lines_expected)
    assert all(expected in line for expected, line in zip(lines_expected, found, strict=True))


def test_overrides_of_a_plugin_that_match_none_of_its_layers_are_mistakes(lines: Lines, write) -> None:
    write("other.yaml", "defaults: [my]\nplugins: {style: {overrides: {'re:.*to_qq': {lr: 1e-4}}}}")
    [line] = map(str, check(load("other.yaml"), selectors=True))
    assert line.startswith("other.yaml:2: plugins.style.overrides.re:.*to_qq: matches none of the ")


def test_a_check_writes_nothing(lines: Lines) -> None:
    before = sorted(Path.cwd().rglob("*"))
    lines("train.loggers=[{_target_: hcpdiff.train.loggers.JsonLines}]", "data.main.cache_latents=disk", selectors=True)
    assert sorted(Path.cwd().rglob("*")) == before
