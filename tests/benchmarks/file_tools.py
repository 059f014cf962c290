"""Merging a LoRA into a UNet of SDXL on disk, and finding it again: time and peak memory of each, in its own process.

    python tests/benchmarks/file_tools.py                # the true size: three files of 5 GB under --folder
    python tests/benchmarks/file_tools.py --width 0.25   # a sixteenth of it

The UNet is diffusers' stock one with random float16 weights, which are written one after the other; the LoRA has rank
16 on the 722 linear layers of the transformers, as kohya's has. Peak memory is the process's resident set, libraries
included: "before" is what it was with everything imported and nothing opened.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.formats import kohya
from hcpdiff.formats.lora_files import Update, write_tensors
from hcpdiff.formats.names import ARCHITECTURES
from hcpdiff.formats.single_file.layouts import CONFIGS
from hcpdiff.formats.single_file.ldm import unet as table_of
from hcpdiff.formats.single_file.table import original_shapes
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.opening import open_weights
from hcpdiff.formats.tensor_files.writing import write
from hcpdiff.tools.extract import extract
from hcpdiff.tools.merge import merge
from hcpdiff.tools.settings import MergeAdapter, MergeSettings

RANK = 16


def unet(width: float) -> nn.Module:
    """On the meta device."""
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS / "sdxl" / "unet" / "config.json").read_text(encoding="utf-8"))
    config["norm_num_groups"] = 1 if width != 1 else config["norm_num_groups"]
    config["block_out_channels"] = [int(channels * width) for channels in config["block_out_channels"]]
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def make(folder: Path, width: float) -> None:
    """base.safetensors and style.safetensors."""
    model = unet(width)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    originals = original_shapes(table_of(shapes), shapes)
    entries = {
        f"model.diffusion_model.{key}": Given(torch.float16, shape, partial(_random, shape))
        for key, shape in originals.items()
    }
    write(folder / "base.safetensors", entries)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".attentions." in name}
    updates = {f"denoiser.{name}": _update(m.out_features, m.in_features) for name, m in linear.items()}
    write_tensors(folder / "style.safetensors", kohya.write(updates, ARCHITECTURES["sdxl"]), {"format": "pt"})
    count = sum(entry.count for entry in entries.values())
    largest = max(entry.nbytes for entry in entries.values())
    size = (folder / "base.safetensors").stat().st_size
    lora = (folder / "style.safetensors").stat().st_size
    print(f"{count:,} parameters, {size / 1e9:.2f} GB; largest tensor {largest / 1e6:.1f} MB")
    print(f"LoRA on {len(updates)} layers, {lora / 1e6:.0f} MB, which merge has in memory and extract makes")


def _random(shape: tuple[int, ...]) -> Tensor:
    return (0.02 * torch.randn(shape)).half()


def _update(rows: int, columns: int) -> Update:
    return Update(torch.randn(RANK, columns) * 0.1, torch.randn(rows, RANK) * 0.1)


def step(name: str, folder: Path) -> None:
    """Run one of the tools, and print what it took."""
    base, tuned = folder / "base.safetensors", folder / "merged.safetensors"
    before, start = _resident("VmRSS"), time.perf_counter()
    if name == "merge":
        adapters = {"style": MergeAdapter(path=str(folder / "style.safetensors"))}
        merge(MergeSettings(base=str(base), out=str(tuned), adapters=adapters))
    else:
        done = extract(base, tuned, folder / "again.safetensors", rank=RANK)
        print(f"{len(done.ranks)} layers, {done.energy:.2%} of the squared change")
    seconds, peak = time.perf_counter() - start, _resident("VmHWM")
    largest = max(entry.nbytes for entry in open_weights(base).tensors.values())
    more = (peak - before) / largest
    memory = f"peak {peak / 1e6:.0f} MB, {before / 1e6:.0f} MB before: {more:.1f} largest tensors"
    print(f"{name:8} {seconds:7.1f} s, {memory}")


def _resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most so far."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "memory is read from /proc, which Linux has"
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of merge and extract at SDXL's size.")
    parser.add_argument("--width", type=float, default=1.0, help="of the UNet: 0.25 has a sixteenth of the weights")
    parser.add_argument("--folder", type=Path, help="where the files go; default: a temporary folder")
    parser.add_argument("--step", choices=["merge", "extract"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step(given.step, given.folder)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        torch.manual_seed(0)
        start = time.perf_counter()
        make(Path(name), given.width)
        print(f"written in {time.perf_counter() - start:.1f} s")
        for tool in ("merge", "extract"):
            command: list[Any] = [sys.executable, __file__, "--step", tool, "--folder", name]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
