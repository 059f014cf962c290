"""FLUX's transformer against diffusers', same weights and inputs, forward and backward: time, aten calls, memory.

    python tests/benchmarks/flux.py --dtype bfloat16 --frozen

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

from hcpdiff.models.flux.transformer import FluxConfig, FluxTransformer, packed
from tests.benchmarks.measure import AtenCalls, PeakMemory, saved_bytes, table, take_turns


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--device", default="cpu")
    options.add_argument("--layers", type=int, nargs=2, default=[2, 4], help="double and single blocks")
    options.add_argument("--heads", type=int, default=6, help="of 128 channels")
    options.add_argument("--side", type=int, default=48, help="latent cells per side, 4 to a token")
    options.add_argument("--tokens", type=int, default=128, help="text tokens")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--frozen", action="store_true", help="gradients of the latents only, as under adapters")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    runs = [step(model, args) for model in models(args)]
    forward = [lambda run=run: run(backward=False) for run in runs]
    rows = {
        "aten calls, forward": [counted(AtenCalls(), run).total for run in forward],
        "aten calls, and backward": [counted(AtenCalls(), run).total for run in runs],
        "saved for backward, MiB": [saved_bytes(run) / 2**20 for run in forward],
        "peak, MiB": [counted(PeakMemory(), run).peak / 2**20 for run in runs],
        "forward, s": take_turns([torch.no_grad()(run) for run in forward], args.rounds, args.device),
        "and backward, s": take_turns(runs, args.rounds, args.device),
    }
    print(table(["ours", "diffusers"], rows))


def models(args: argparse.Namespace) -> tuple[FluxTransformer, nn.Module]:
    import diffusers

    shape = {"num_layers": args.layers[0], "num_single_layers": args.layers[1], "num_attention_heads": args.heads}
    ours = FluxTransformer(FluxConfig(**shape, guidance_embeds=True))
    theirs = diffusers.FluxTransformer2DModel(**shape, guidance_embeds=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.02)
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model.to(args.device, getattr(torch, args.dtype)).requires_grad_(not args.frozen)
    return ours, theirs


def step(model: nn.Module, args: argparse.Namespace) -> Callable[..., Tensor]:
    import diffusers

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(args.device, model.dtype)

    latents = normal(16, args.side, args.side).requires_grad_(args.frozen)
    tokens, pooled = normal(args.tokens, 4096), normal(768)
    time, guidance = torch.tensor([500.0], device=args.device), torch.tensor([3.5], device=args.device)
    places = diffusers.FluxPipeline._prepare_latent_image_ids(1, args.side // 2, args.side // 2, args.device, None)
    no_place = torch.zeros(args.tokens, 3, device=args.device)

    def run(*, backward: bool = True) -> Tensor:
        model.zero_grad(set_to_none=True)
        if isinstance(model, FluxTransformer):
            output = model(latents, time, tokens, pooled, guidance)
        else:
            inputs = (packed(latents), tokens, pooled, time / 1000, places, no_place, guidance)
            (output,) = model(*inputs, return_dict=False)
        if backward:
            output.backward(torch.ones_like(output))
        return output

    return run


def counted(mode: AtenCalls | PeakMemory, run: Callable[[], object]) -> AtenCalls | PeakMemory:
    with mode:
        run()
    return mode


if __name__ == "__main__":
    main()
