"""How long a model takes to load and how much memory, against diffusers, and against reading the bytes of its files.

    python tests/benchmarks/loading.py --model sd1 --dtype float32

The model has its published size and random weights. Every contestant loads it in a process of its own, with everything
imported and the files in the page cache, by turns; the least time and the most memory of all rounds count. Memory is
what the process grows by at its peak, over the bytes of the weights; pages of mapped files count. diffusers maps what
needs no other dtype, so it looks at each page of its weights besides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.formats.single_file.layouts import LAYOUTS
from hcpdiff.formats.tensor_files.entries import Given
from hcpdiff.formats.tensor_files.opening import DIFFUSERS, TRANSFORMERS, write_json
from hcpdiff.formats.tensor_files.writing import write_folder
from hcpdiff.models import convert_model, opening
from hcpdiff.models.saving import save_part
from hcpdiff.models.text import t5
from tests.models.tiny import tiny_tokenizer

CONTESTANTS = ("bytes", "hcpdiff", "diffusers")
CLOCKS = ("wall", "cpu")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=list(LAYOUTS), default="sd1")
    options.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the files")
    options.add_argument("--load-as", default=None, help="a dtype; default: that of the files")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tmp", default=None, help="where the files go")
    options.add_argument("--no-t5", action="store_true", help="of SD3")
    options.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.run:
        print(json.dumps(measured(args.run[0], Path(args.run[1]), args)))
        return
    with tempfile.TemporaryDirectory(dir=args.tmp) as tmp:
        folder, file = Path(tmp) / "model", Path(tmp) / "model.safetensors"
        make(folder, args)
        compare("folder", folder, args)
        convert_model(folder, file)
        for weight in folder.rglob("*.safetensors"):  # of the folder, what is left goes with the single file
            weight.unlink()
        compare("single file", file, args)


def make(folder: Path, args: argparse.Namespace) -> None:
    """A folder in diffusers' layout, written tensor by tensor."""
    layout = LAYOUTS[args.model]
    family, dtype = opening.FAMILIES[layout.pipeline], getattr(torch, args.dtype)
    index: dict[str, Any] = {"_class_name": layout.pipeline, **{name: [None, None] for name in family.empty}}
    for path, part in family.parts.items():
        if args.no_t5 and path == "text_encoders.t5":
            stand_in, tokenizer = t5.silent(4096, dtype)  # which the stock pipeline insists on
            save_part(stand_in, folder / part.folder)
            tokenizer.save_pretrained(folder / str(part.tokenizer))
            index[part.folder] = ["transformers", type(stand_in).__name__]
            index[str(part.tokenizer)] = ["transformers", type(tokenizer).__name__]
            continue
        shutil.copytree(layout.configs / part.folder, folder / part.folder)
        model: Any = part.kind.blank(folder / part.folder)
        text = path.startswith("text_encoders")
        own = dict(model.named_parameters()) | {k: v for k, v in model.named_buffers() if k in model.state_dict()}
        tensors = {k: Given(dtype, tuple(x.shape), partial(_random, x.shape)) for k, x in own.items()}
        write_folder(folder / part.folder, TRANSFORMERS if text else DIFFUSERS, tensors)
        name = getattr(model, "diffusers_class", type(model).__name__)
        index[part.folder] = ["transformers" if text else "diffusers", name]
        if part.tokenizer:
            tokenizer = tiny_tokenizer(77)
            tokenizer.save_pretrained(folder / part.tokenizer)
            index[part.tokenizer] = ["transformers", type(tokenizer).__name__]
    scheduler = dict(family.stock_scheduler) | dict(layout.scheduler)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    write_json(folder / "model_index.json", index)


def compare(title: str, path: Path, args: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            command = [sys.executable, *sys.argv, "--run", name, str(path)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(out.splitlines()[-1]))
    units = [min(run[clock] for run in found["bytes"]) for clock in CLOCKS]
    size = found["hcpdiff"][0]["weights"] / 1e9
    print(f"{args.model} {args.dtype} as {args.load_as or args.dtype}, {title}, {size:.2f} GB")
    for name, runs in found.items():
        name = f"{name:10}"
        for clock, unit in zip(CLOCKS, units, strict=True):
            least = min(run[clock] for run in runs)
            name += f"{least:8.2f} s {clock} ({least / unit:.2f})"
        memory = max(run["peak"] / (run["weights"] or 1) for run in runs)
        print(f"  {name}" + (f", {memory:.2f} of the weights" if memory < 100 else ""))


def measured(name: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    """One load: seconds of two clocks, the peak of memory above what the process had before, bytes of the weights."""
    load = {"bytes": _bytes, "hcpdiff": _ours, "diffusers": _theirs}[name](path, args)
    for file in _files(path):  # into the page cache
        with file.open("rb", buffering=0) as bytes_in, memoryview(bytearray(1 << 24)) as buffer:
            while bytes_in.readinto(buffer):
                pass
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    models = load()
    if name == "diffusers":
        for weight in [p for model in models for p in model.parameters()]:
            weight.detach().flatten()[:: 4096 // weight.element_size()].sum()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    count = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    return {"wall": wall, "cpu": cpu, "peak": _memory("VmHWM") - before, "weights": count}


def _bytes(path: Path, args: argparse.Namespace) -> Callable[[], list[Any]]:
    kept: list[bytes] = []

    def read() -> list[Any]:
        kept.extend(file.read_bytes() for file in _files(path))
        return []

    return read


def _ours(path: Path, args: argparse.Namespace) -> Callable[[], list[Any]]:
    dtype, family = args.load_as or args.dtype, opening.family_of(path)
    for part in family.parts.values():  # imports
        part.kind.blank(LAYOUTS[args.model].configs / part.folder)

    def load() -> list[Any]:
        loaded: Any = opening.open_model(path, dtype=dtype, vae_dtype=dtype)
        return [loaded.denoiser, loaded.vae, *loaded.text_encoders.values()]

    return load


def _theirs(path: Path, args: argparse.Namespace) -> Callable[[], list[Any]]:
    import diffusers

    dtype = getattr(torch, args.load_as or args.dtype)
    kind = getattr(diffusers, LAYOUTS[args.model].pipeline)
    _ours(path, args)  # imports the classes of all parts
    own: dict[str, Any] = {"torch_dtype": dtype, "local_files_only": True}

    def load() -> list[Any]:
        if path.is_dir():
            pipeline = kind.from_pretrained(path, **own)
        else:
            pipeline = kind.from_single_file(str(path), config=str(path.with_suffix("")), **own)
        return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]

    return load


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]


def _memory(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def _random(shape: torch.Size) -> torch.Tensor:
    return torch.empty(shape).normal_(std=0.02)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
