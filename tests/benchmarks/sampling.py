"""Sampling against the stock pipelines: same weights, prompt, noise, steps and guidance; by turns in one process.

    python tests/benchmarks/sampling.py

A UNet like that of Stable Diffusion 1 with half its channels, at 32 x 32 latents; an SD3 of 12 layers and width 768.
The ratio is that of the medians; below 1 is in our favour.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from hcpdiff.infer import Request, generate
from hcpdiff.models import open_model
from tests.models.tiny import tiny_tokenizer
from tests.models.tiny_unet import tiny_sd

PROMPT, GUIDANCE = "a red cat", 5.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models:
        pipeline, pixels = MODELS[name]()
        pipeline.set_progress_bar_config(disable=True)
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            family = open_model(folder)
        runs = [ours(family, pixels, args.steps), stock(pipeline, pixels, args.steps)]
        difference = float((runs[0]() - runs[1]()).abs().max())
        times: list[list[float]] = [[], []]
        for _ in range(args.rounds):
            for run, seconds in zip(runs, times, strict=True):
                start = time.process_time()
                run()
                seconds.append(time.process_time() - start)
        mine, theirs = (median(seconds) for seconds in times)
        print(f"{name:6} ours {mine:.2f} s, diffusers {theirs:.2f} s, ratio {mine / theirs:.3f}", end="; ")
        print(f"largest difference of pixels {difference:.1f} of 255")


def ours(family: Any, pixels: int, steps: int) -> Callable[[], Tensor]:
    request = Request(prompts=[PROMPT], size=(pixels, pixels), steps=steps, guidance=GUIDANCE, seed=0)
    return lambda: as_pixels(generate(family, request)[0].image)


def stock(pipeline: Any, pixels: int, steps: int) -> Callable[[], Tensor]:
    settings = {"height": pixels, "width": pixels, "num_inference_steps": steps, "guidance_scale": GUIDANCE}

    def run() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return as_pixels(pipeline(PROMPT, generator=generator, **settings).images[0])

    return run


def as_pixels(image: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(image).astype("float32"))


def sd() -> tuple[Any, int]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    pipeline = tiny_sd()
    shape = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12}
    tokenizer = tiny_tokenizer(77)
    ids = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    pipeline.register_modules(
        unet=UNet2DConditionModel(
            sample_size=32, block_out_channels=(160, 320, 640, 640), cross_attention_dim=768, norm_num_groups=32
        ).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **shape, **ids)).eval(),
        tokenizer=tokenizer,
    )
    return pipeline, 64  # the tiny VAE has 2 pixels to a latent cell


def sd3() -> tuple[Any, int]:
    from diffusers import SD3Transformer2DModel

    from tests.models.tiny import tiny_pipeline

    torch.manual_seed(0)
    pipeline = tiny_pipeline(t5=True)
    shape = {"num_layers": 12, "num_attention_heads": 12, "attention_head_dim": 64, "caption_projection_dim": 768}
    pipeline.register_modules(
        transformer=SD3Transformer2DModel(
            sample_size=64, in_channels=4, out_channels=4, joint_attention_dim=28, pooled_projection_dim=24, **shape
        ).eval()
    )
    return pipeline, 96


MODELS: dict[str, Callable[[], tuple[Any, int]]] = {"sd": sd, "sd3": sd3}

if __name__ == "__main__":
    main()
