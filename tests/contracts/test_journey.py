"""What a user does with every family: train a LoRA, go on with it, make pictures, and take it to other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from hcpdiff.cli import main
from tests.models import tiny_unet
from tests.models.tiny import tiny_pipeline
from tests.models.tiny_flux import tiny_flux_pipeline
from tests.models.tiny_pixart import tiny_pixart
from tests.models.tiny_qwen import tiny_qwen_image
from tests.models.tiny_unet import tiny_sd, tiny_sdxl
from tests.models.tiny_zimage import tiny_zimage
from tests.train.runs import same

PeftModel = pytest.importorskip("peft").PeftModel
pytestmark = pytest.mark.slow

UNET = r"re:.*\.attn[12]\.to_(?:[qkv]|out\.0)"
JOINT = r"re:transformer_blocks\..*\.attn\.(?:to|add)_.*"


@dataclass(frozen=True)
class Row:
    pipeline: Callable[[], Any]  # the stock one, tiny, with random weights
    family: str
    layers: str  # of the LoRA
    options: str = ""  # of `from_pretrained`
    single_file: bool = False  # whether the original code has one


FAMILIES = {
    "SD1.5": Row(tiny_sd, "StableDiffusion", UNET, single_file=True),
    "SD2 with v-prediction": Row(lambda: tiny_sd("v_prediction"), "StableDiffusion", UNET, "clip_skip: 1", True),
    "SDXL": Row(tiny_sdxl, "SDXL", UNET, single_file=True),
    "SD3": Row(lambda: tiny_pipeline(t5=True), "SD3", JOINT, "t5_tokens: 7", single_file=True),
    "SD3.5": Row(lambda: tiny_pipeline(t5=False, shape="sd3.5-medium"), "SD3", JOINT, "t5_tokens: 7", True),
    "FLUX dev": Row(lambda: tiny_flux_pipeline("dev"), "Flux", JOINT, "t5_tokens: 7", single_file=True),
    "FLUX schnell": Row(lambda: tiny_flux_pipeline("schnell"), "Flux", JOINT, "t5_tokens: 7", single_file=True),
    "PixArt-Sigma": Row(tiny_pixart, "PixArtSigma", UNET, "t5_tokens: 9"),
    "Z-Image": Row(tiny_zimage, "ZImage", r"re:layers\..*\.attention\.to_[qkv]", "text_tokens: 18"),
    "Qwen-Image": Row(tiny_qwen_image, "QwenImage", JOINT, "text_tokens: 18"),
}
CONFIG = """
name: whole
model: {{_target_: hcpdiff.models.{family}.from_pretrained, path: model, {options}}}
data:
  main:
    source: {{_target_: hcpdiff.data.Scenes, count: 6}}
    bucket: {{_target_: hcpdiff.data.FixedBucket, size: 48}}
    batch_size: 2
plugins:
  style: {{_target_: hcpdiff.plugins.LoRA, layers: ['{layers}'], rank: 2, alpha: 3.0, lr: 5e-2}}
train:
  steps: 20
  save_every: 10
  optimizer: {{_target_: torch.optim.AdamW, lr: 1e-3}}
infer: {{prompts: [a red star], size: [48, 48], steps: 2, seed: 5, out: pictures}}
"""
CLOSE = 2  # of 255: sums of float32 in another order, rounded to a byte


@pytest.fixture(scope="module", autouse=True)
def _as_many_layers_as_the_real_one() -> Iterator[None]:
    """Kohya's names of XL count with two in each block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_unet.UNET, "layers_per_block", 2)
        yield


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def folder(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of this family has ended."""
    folder = tmp_path_factory.mktemp("journey")
    row.pipeline().save_pretrained(folder / "model")
    text = CONFIG.format(family=row.family, layers=row.layers, options=row.options)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--cfg", "run.yaml"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def picture(out: str, *overrides: str, adapter: bool = False) -> np.ndarray:
    """What `hcpdiff infer` makes, with the LoRA or without."""
    with_it = ["infer.adapters={style: {path: exps/whole/style.safetensors}}"] if adapter else []
    assert main(["infer", "--cfg", "run.yaml", "--out", out, *with_it, *overrides]) == 0
    return np.asarray(Image.open(f"{out}/00000-5.png")).astype(int)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def test_a_run_that_was_stopped_ends_with_the_same_weights() -> None:
    assert main(["train", "--cfg", "run.yaml", "name=parts", "train.steps=10"]) == 0
    assert main(["train", "--cfg", "run.yaml", "name=parts", "--resume", "auto"]) == 0
    whole, parts = (load_file(f"exps/{name}/style.safetensors") for name in ("whole", "parts"))
    assert same(whole, parts)


def test_the_lora_changes_the_pictures() -> None:
    assert difference(picture("plain"), picture("styled", adapter=True)) > 10 * CLOSE


def test_the_log_says_where_it_loads(row: Row) -> None:
    log = Path("exps/whole/train.log").read_text(encoding="utf-8")
    program = "diffusers" if row.family != "PixArtSigma" else "ComfyUI"
    assert f"style.safetensors loads in: {program}" in log


def test_stock_diffusers_makes_of_the_file_what_hcpdiff_makes(row: Row) -> None:
    pipeline = row.pipeline()
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights("exps/whole", weight_name="style.safetensors")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    else:  # diffusers cannot read a LoRA for this one, and PEFT can
        assert main(["convert", "exps/whole/style.safetensors", "--to", "peft", "--out", "peft"]) == 0
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, "peft").merge_and_unload()
    pipeline.save_pretrained("fused")
    assert difference(picture("fused-pictures", "model.path=fused"), picture("ours", adapter=True)) <= CLOSE


def test_a_merged_model_makes_what_the_lora_makes(tmp_path: Path) -> None:
    Path("merge.yaml").write_text(
        "merge:\n  base: model\n  adapters: {style: {path: exps/whole/style.safetensors, strength: 1.0}}\n"
        f"  out: {tmp_path / 'merged'}\n",
        encoding="utf-8",
    )
    assert main(["merge", "--cfg", "merge.yaml"]) == 0
    merged = picture(str(tmp_path / "pictures"), f"model.path={tmp_path / 'merged'}")
    assert difference(merged, picture("styled again", adapter=True)) <= CLOSE


def test_as_a_single_file_it_is_the_same_model(row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.safetensors"
    code = main(["convert", "model", "--to", "single", "--out", str(file)])
    if not row.single_file:
        assert code == 2
        assert "there is no single file of this family" in capsys.readouterr().err
        return
    back = tmp_path / "back"
    assert main(["convert", str(file), "--to", "folder", "--configs", "model", "--out", str(back)]) == 0
    wanted = picture("of the folder")
    for place in (f"model.path={file} +model.configs=model", f"model.path={back}"):
        assert difference(picture(str(tmp_path / "pictures"), *place.split()), wanted) == 0
