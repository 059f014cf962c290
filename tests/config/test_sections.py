"""The real receivers of the sections."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from PIL import Image

from hcpdiff.config import sections
from hcpdiff.config.building import build
from hcpdiff.config.checking import check
from hcpdiff.config.loading import Config, load

TEXT = r"""
name: real
seed: 0
data:
  main:
    source: {_target_: hcpdiff.data.FolderSource, path: images}
    bucket: {_target_: hcpdiff.data.RatioBucket, area: 4096}
    batch_size: 4
    caption_transforms:
      - {_target_: hcpdiff.data.TagShuffle}
plugins:
  style:
    _target_: hcpdiff.plugins.LoRA
    on: denoiser
    layers: ['re:.*\.attn\.to_(?:q|k|v)']
    rank: 16
    lr: 1e-4
finetune:
  - {layers: ['re:.*norm.*'], lr: 1e-6}
train:
  steps: 10
  optimizer: {_target_: torch.optim.AdamW, lr: 1e-3}
  timesteps: {_target_: hcpdiff.diffusion.timesteps.logit_normal}
  preview: {every: 10, requests: [{prompts: [a, {positive: b, negative: c}], size: [64, 64]}]}
infer:
  prompts: [a cat]
  steps: 28
  size: [64, 64]
"""


@pytest.fixture
def real(write) -> Config:
    for name in ("a", "b"):
        write(f"images/{name}.txt", "a cat")
        Image.new("RGB", (64, 64)).save(f"images/{name}.png")
    write("my.yaml", TEXT)
    return load("my.yaml")


@pytest.mark.parametrize("section", sections.SECTIONS)
def test_every_section_has_a_receiver(section):
    assert sections.annotation(section) is not None


def test_a_config_of_real_parts_has_no_mistakes_and_builds(real):
    assert check(real) == []
    spec = build(real, "plugins")["style"]
    assert (spec.lr, spec.options) == (1e-4, {"rank": 16})
    train = build(real, "train")
    assert train.optimizer.keywords == {"lr": 1e-3}
    assert train.preview.requests[0].size == (64, 64)
    assert build(real, "finetune")[0].lr == 1e-6


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.optimizer.weight_decy=1", "torch.optim.AdamW takes no such argument; did you mean 'weight_decay'?"),
        ("train.preview.evry=1", "train.preview takes no such argument; did you mean 'every'?"),
        ("infer.guidence=3", "infer takes no such argument; did you mean 'guidance'?"),
        ("data.main.bach_size=3", "data.main takes no such argument; did you mean 'batch_size'?"),
        ("data.main.bucket._target_=hcpdiff.data.FolderSource", "hcpdiff.data.FolderSource is not a Bucket"),
        ("data.main.batch_size=four", "'four' is not a whole number"),
        ("train.precision=half", "'half' is not one of fp32, bf16, fp16"),
        ("infer.adapters={style: {path: none.safetensors}}", "no file or folder at none.safetensors"),
    ],
)
def test_mistakes_in_it_are_found(real, override, line):
    key = override.partition("=")[0]
    lines = [str(mistake) for mistake in check(load("my.yaml", [override]))]
    assert any(found.startswith(f"override: {key}") and line in found for found in lines), lines


def test_a_check_is_quick_and_imports_no_model_library(real):
    code = (
        "import sys; from hcpdiff.config import load, check; mistakes = check(load('my.yaml'))\n"
        "heavy = ('diffusers', 'transformers', 'peft', 'accelerate', 'albumentations')\n"
        "print(mistakes, [name for name in heavy if name in sys.modules])"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"
    assert time.perf_counter() - start < 30  # 1.2 s on an idle machine; CI machines are busy


STREAM = (
    "data.more={_target_: hcpdiff.data.StreamDataset, source: {_target_: hcpdiff.data.TarStream, shards: a.tar}, "
    "bucket: {_target_: hcpdiff.data.RatioGridBucket, area: 4096}, batch_size: 4}"
)


def test_a_dataset_may_be_a_stream(real, write):
    write("a.tar", "")
    assert check(load("my.yaml", [STREAM])) == []
    (mistake,) = check(load("my.yaml", [STREAM.replace("batch_size: 4", "batch_size: 4, bufer: 9")]))
    assert "hcpdiff.data.StreamDataset takes no such argument; did you mean 'buffer'?" in str(mistake)
    (mistake,) = check(load("my.yaml", ["data.main._target_=hcpdiff.data.TagShuffle"]))[:1]
    assert "hcpdiff.data.TagShuffle is not a Dataset" in str(mistake)
