"""However big a model is, the tools hold a few of its tensors at once. Counted are the bytes of live tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hcpdiff.tools.extract import extract
from hcpdiff.tools.inspect import inspect
from hcpdiff.tools.merge import merge
from hcpdiff.tools.resize import resize
from hcpdiff.tools.settings import MergeAdapter, MergePart, MergeSettings
from tests.benchmarks.measure import PeakMemory

BLOCKS = 32
LARGEST = 768 * 256 * 4  # bytes of a block's q, k and v as one


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.safetensors, other.safetensors (equal blocks of FLUX's layout) and a LoRA for it, style.safetensors."""
    torch.manual_seed(0)
    folder, name = tmp_path_factory.mktemp("memory"), "double_blocks.{}.img_attn.qkv"
    for file in ("base", "other"):
        state = {f"{name.format(i)}.weight": torch.randn(768, 256) for i in range(BLOCKS)}
        save_file(state, folder / f"{file}.safetensors")
    lora = {}
    for i in range(BLOCKS):
        flat = f"lora_unet_{name.format(i).replace('.', '_')}"
        lora |= {f"{flat}.lora_down.weight": torch.randn(4, 256), f"{flat}.lora_up.weight": torch.randn(768, 4)}
    save_file(lora, folder / "style.safetensors")
    return folder


def test_merging_needs_a_few_tensors(files: Path, tmp_path: Path) -> None:
    settings = MergeSettings(
        base=str(files / "base.safetensors"),
        parts={"other": MergePart(path=str(files / "other.safetensors"), strength=0.5)},
        adapters={"style": MergeAdapter(path=str(files / "style.safetensors"))},
        out=str(tmp_path / "out.safetensors"),
    )
    with PeakMemory() as memory:
        merge(settings)
    adapter = 3 * (files / "style.safetensors").stat().st_size  # it is read as a whole, and once for each of q, k and v
    assert LARGEST < memory.peak < 6 * LARGEST + adapter
    assert memory.peak < BLOCKS * LARGEST / 4


def test_extracting_needs_a_few_tensors(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "lora.safetensors"
    with PeakMemory() as memory:
        extract(files / "base.safetensors", files / "other.safetensors", out, rank=2)
    assert LARGEST / 3 < memory.peak < 8 * LARGEST + 2 * out.stat().st_size


def test_looking_at_a_model_reads_none_of_its_weights(files: Path) -> None:
    with PeakMemory() as memory:
        assert len(inspect(files / "base.safetensors").layers) == 3 * BLOCKS
    assert memory.peak == 0


def test_resizing_needs_no_whole_change(files: Path, tmp_path: Path) -> None:
    style = files / "style.safetensors"
    with PeakMemory() as memory:
        resize(style, tmp_path / "small.safetensors", rank=2)
    assert memory.peak < 4 * style.stat().st_size
