"""A training step of our MMDiT with our LoRA, against diffusers' model with PEFT's: time and peak memory.

    python tests/benchmarks/lora.py                     # width 768, 4 layers, 1024 image + 154 text tokens, one thread
    python tests/benchmarks/lora.py --device cuda --full    # SD3.5 medium's true shape at 1024 px

Rank 16 on all linear layers of attention and MLPs, frozen base, forward and backward. "peft" runs as diffusers'
training scripts do: with a bf16 base and fp32 adapters it is under autocast. "floor" is our model with gradients of the
inputs only, and no adapter. Everything is timed by turns in one run, and the least of all rounds counts.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.models.sd3.transformer import MMDiT, MMDiTConfig
from hcpdiff.plugins import LoRA, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.benchmarks.measure import PeakMemory, take_turns

SMALL = {
    "sample_size": 64,
    "num_layers": 4,
    "num_attention_heads": 12,
    "caption_projection_dim": 768,
    "pos_embed_max_size": 96,
}
FULL = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
]
RANK = 16


class Holder(nn.Module):
    """A family as far as plugins need one."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser


def fill(model: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """Random weights everywhere, the same for all contestants, frozen."""
    generator = torch.Generator().manual_seed(0)
    for _, p in sorted(model.named_parameters()):
        p.data = torch.randn(p.shape, generator=generator) * 0.02
    return model.to(device, dtype).requires_grad_(False)


def with_peft(shape: dict[str, Any], dtype: torch.dtype, lora: torch.dtype, device: str) -> Any:
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig

    model = fill(SD3Transformer2DModel(**shape), dtype, device)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = p.data.to(lora)
    return model


def with_ours(shape: dict[str, Any], dtype: torch.dtype, lora: torch.dtype | None, device: str) -> Any:
    model = fill(MMDiT(MMDiTConfig.from_dict(shape)), dtype, device)
    if lora is not None:
        names = "|".join(name.replace(".", r"\.") for name in LAYERS)
        spec = PluginSpec(LoRA, layers=[rf"re:transformer_blocks\..*\.(?:{names})"], options={"rank": RANK})
        group = attach(Holder(model), {"lora": spec})
        model.__dict__["group"] = group
        for p in group.parameters():
            p.data = p.data.to(lora)
    return model


def step(model: Any, inputs: tuple[Tensor, ...], *, autocast: bool, device: str) -> Callable[[], None]:
    """Forward and backward, gradients thrown away."""
    latents, timesteps, tokens, pooled = inputs

    def run() -> None:
        context = torch.autocast(device, torch.bfloat16) if autocast else contextlib.nullcontext()
        with context:
            if isinstance(model, MMDiT):
                pred = model(latents, timesteps, tokens, pooled)
            else:
                pred = model(latents, tokens, pooled, timesteps, return_dict=False)[0]
        pred.float().square().mean().backward()
        latents.grad = None
        for p in [*model.parameters(), *getattr(model, "group", nn.Module()).parameters()]:
            p.grad = None

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape, side = (FULL, 128) if args.full else (SMALL, 64)
    bf16, fp32 = torch.bfloat16, torch.float32
    print(f"{'':34}{'ours':>9}{'peft':>9}{'floor':>9}{'ours/peft':>11}{'ours/floor':>11}{'peak ours/peft':>16}")
    for title, base, lora, autocast in (
        ("bf16 base, fp32 LoRA (autocast)", bf16, fp32, True),
        ("bf16 base, fp32 LoRA (no autocast)", bf16, fp32, False),
        ("bf16 base, bf16 LoRA", bf16, bf16, False),
        ("fp32 base, fp32 LoRA", fp32, fp32, False),
    ):
        generator = torch.Generator().manual_seed(1)
        inputs = [torch.randn(1, 16, side, side, generator=generator), torch.full((1,), 500.0)]
        inputs += [torch.randn(1, 154, 4096, generator=generator), torch.randn(1, 2048, generator=generator)]
        inputs = [x.to(args.device, x.dtype if x.ndim == 1 else base) for x in inputs]
        inputs[0].requires_grad_(True)
        runs = [
            step(with_ours(shape, base, lora, args.device), tuple(inputs), autocast=False, device=args.device),
            step(with_peft(shape, base, lora, args.device), tuple(inputs), autocast=autocast, device=args.device),
            step(with_ours(shape, base, None, args.device), tuple(inputs), autocast=False, device=args.device),
        ]
        ours, peft, floor = take_turns(runs, args.rounds, args.device)
        peaks = []
        for run in runs[:2]:
            gc.collect()
            with PeakMemory() as memory:
                run()
            peaks.append(memory.peak)
        print(
            f"{title:34}{ours:9.3f}{peft:9.3f}{floor:9.3f}{ours / peft:11.3f}{ours / floor:11.3f}"
            f"{peaks[0] / peaks[1]:16.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
