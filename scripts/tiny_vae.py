"""Train the VAE of the embedded tiny SD3 model on drawn scenes (one CPU thread, about 8 minutes).

    python scripts/tiny_vae.py --out build/tiny/vae

It must draw more than the base model is shown: patterned backgrounds and other colors belong to what users teach it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hcpdiff.data.sources.scenes import PATTERNS, Scenes, render

CROP = 32  # pixels
FROZEN = 0.6  # share of the steps after which the encoder is normalised and frozen, and the decoder alone goes on


def build() -> AutoencoderKL:
    """An untrained VAE: 4x smaller, 8 channels, 0.2M parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=2,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=48,
    )


def pictures(count: int, *, seed: int, patterns: tuple[str, ...] = PATTERNS) -> list[Tensor]:
    """Scenes as (3, H, W) in [-1, 1]."""
    scenes = Scenes(count, seed=seed, patterns=patterns)
    return [torch.from_numpy(render(scenes.scene(i))).permute(2, 0, 1) / 127.5 - 1 for i in range(count)]


def crops(images: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Random crops, flipped, turned, and half of them in other colors, (count, 3, CROP, CROP)."""

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    result = []
    for _ in range(count):
        image = images[number(len(images))]
        top, left = number(image.shape[1] - CROP + 1), number(image.shape[2] - CROP + 1)
        crop = image[:, top : top + CROP, left : left + CROP].rot90(number(4), (1, 2))
        if number(2):
            sign = torch.randint(2, (3, 1, 1), generator=generator) * 2.0 - 1
            crop = (
                crop[torch.randperm(3, generator=generator)] * sign * (0.6 + 0.4 * torch.rand(1, generator=generator))
            )
        result.append(crop)
    return torch.stack(result)


def reconstruction_loss(pred: Tensor, images: Tensor) -> Tensor:
    """L1 + half MSE + half the L1 of the differences between neighbours, which keeps edges sharp."""
    error = pred - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: list[Tensor]) -> None:
    """Give all latent channels the same mean and deviation, which become the shift and scale of the config."""
    latents = torch.cat([vae.encode(image[None]).latent_dist.mean.flatten(2) for image in images], dim=2)[0]
    mean, std = latents.mean(dim=1), latents.std(dim=1)
    shift, scale = mean.mean(), std.mean()
    gain = scale / std
    out, into = vae.encoder.conv_out, vae.decoder.conv_in
    channels = len(mean)
    into.bias += (into.weight.sum(dim=(2, 3)) * (mean - shift / gain)).sum(dim=1)
    into.weight /= gain[:, None, None]
    out.weight[:channels] *= gain[:, None, None, None]
    out.bias[:channels] = (out.bias[:channels] - mean) * gain + shift
    out.bias[channels:] += 2 * gain.log()
    vae.register_to_config(scaling_factor=round(float(1 / scale), 6), shift_factor=round(float(shift), 6))


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: list[Tensor]) -> Tensor:
    """Of each picture after encoding and decoding, in dB."""
    decoded = [vae.decode(vae.encode(image[None]).latent_dist.mean).sample[0].clamp(-1, 1) for image in images]
    errors = [(ours - image).square().mean() for ours, image in zip(decoded, images, strict=True)]
    return 10 * torch.log10(4 / torch.stack(errors))


def train(out: Path, *, steps: int, batch: int, lr: float, kl: float, seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = pictures(6000, seed=1)
    held_out = {pattern: pictures(40, seed=2, patterns=(pattern,)) for pattern in PATTERNS}
    vae = build().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in vae.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    frozen_at, started = int(FROZEN * steps), time.time()
    for step in range(steps):
        if step == frozen_at:
            normalise(vae, pictures(400, seed=3, patterns=("plain",)))
            vae.encoder.requires_grad_(False)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        whole = step % 8 == 7  # whole pictures now and then: the norms see the picture's size
        if whole:
            same = [x for x in images[step % 5000 : step % 5000 + 60] if x.shape[1] == (48, 40, 56)[step // 8 % 3]]
            x = torch.stack(same[: batch // 2])
        else:
            x = crops(images, batch, generator)
        posterior = vae.encode(x).latent_dist
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(vae.decode(posterior.sample()).sample, x) + kl * divergence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            means = {name: f"{psnr(vae, sample).mean():.2f}" for name, sample in held_out.items()}
            print(f"{step} {time.time() - started:.0f}s loss {loss.item():.4f} PSNR {means}", flush=True)
            vae.save_pretrained(out)
    everything = torch.cat([psnr(vae, sample) for sample in held_out.values()])
    print(f"PSNR mean {everything.mean():.2f}, worst {everything.min():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
