"""Our transformer against diffusers', same weights and inputs, forward and backward: time, aten calls, memory.

    python tests/benchmarks/mmdit.py --dtype bfloat16 --compile --frozen

The two take turns in one run; the least of n runs counts. Ratios below 1 are in our favour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.models.sd3.transformer import MMDiT, MMDiTConfig
from tests.benchmarks.measure import AtenCalls, PeakMemory, saved_bytes, table, take_turns

KINDS = {"sd3": {}, "sd3.5-large": {"qk_norm": "rms_norm"}, "sd3.5-medium": {"qk_norm": "rms_norm", "dual": True}}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kind", choices=KINDS, default="sd3")
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--device", default="cpu")
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--width", type=int, default=768)
    options.add_argument(
        "--side", type=int, default=64, help="latent cells per side; a quarter of its square is tokens"
    )
    options.add_argument("--tokens", type=int, default=154, help="text tokens")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--frozen", action="store_true", help="gradients of the latents only, as under adapters")
    options.add_argument("--compile", action="store_true", help="torch.compile every block")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = models(args)
    contestants = {"ours": step(ours, args, theirs=False), "diffusers": step(theirs, args, theirs=True)}
    rows = {}
    if not args.compile:
        rows["aten calls, forward"] = [count(lambda run=run: run(backward=False)) for run in contestants.values()]
        rows["aten calls, and backward"] = [count(run) for run in contestants.values()]
        rows["saved for backward, MiB"] = [
            saved_bytes(lambda run=run: run(backward=False)) / 2**20 for run in contestants.values()
        ]
        rows["peak, MiB"] = [peak(run) / 2**20 for run in contestants.values()]
    rows["forward, s"] = take_turns([no_grad(run) for run in contestants.values()], args.rounds, args.device)
    rows["and backward, s"] = take_turns(list(contestants.values()), args.rounds, args.device)
    print(table(list(contestants), rows))


def models(args: argparse.Namespace) -> tuple[MMDiT, nn.Module]:
    import diffusers

    kind = dict(KINDS[args.kind])
    shape = {
        "sample_size": args.side,
        "num_layers": args.layers,
        "attention_head_dim": 64,
        "num_attention_heads": args.width // 64,
        "caption_projection_dim": args.width,
        "pos_embed_max_size": args.side,
        "dual_attention_layers": tuple(range(args.layers)) if kind.pop("dual", False) else (),
        **kind,
    }
    ours, theirs = MMDiT(MMDiTConfig.from_dict(shape)), diffusers.SD3Transformer2DModel(**shape)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    theirs.load_state_dict(ours.state_dict())
    dtype = getattr(torch, args.dtype)
    for model in (ours, theirs):
        model.to(args.device, dtype).requires_grad_(not args.frozen)
        if args.compile:
            for block in model.transformer_blocks:
                block.compile(fullgraph=True)
    return ours, theirs


def step(model: nn.Module, args: argparse.Namespace, *, theirs: bool) -> Callable[..., Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(args.batch, *shape, generator=torch.Generator().manual_seed(0)).to(args.device, model.dtype)

    latents = normal(16, args.side, args.side).requires_grad_(args.frozen)
    tokens, pooled, timesteps = (
        normal(args.tokens, 4096),
        normal(2048),
        torch.full((args.batch,), 500.0).to(args.device),
    )

    def run(*, backward: bool = True) -> Tensor:
        model.zero_grad(set_to_none=True)
        if theirs:
            output = model(latents, tokens, pooled, timesteps, return_dict=False)[0]
        else:
            output = model(latents, timesteps, tokens, pooled)
        if backward:
            output.backward(torch.ones_like(output))
        return output

    return run


def no_grad(run: Callable[..., Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: run(backward=False))


def count(run: Callable[[], object]) -> int:
    with AtenCalls() as mode:
        run()
    return mode.total


def peak(run: Callable[[], object]) -> int:
    with PeakMemory() as mode:
        run()
    return mode.peak


if __name__ == "__main__":
    main()
