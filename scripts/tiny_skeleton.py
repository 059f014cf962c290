"""Put together the untrained tiny SD3 model: tokenizer, text encoders, MMDiT and scheduler, around a trained VAE.

    python scripts/tiny_skeleton.py --vae build/tiny/vae --out build/tiny/skeleton

The result is a complete folder of diffusers' StableDiffusion3Pipeline, which
`hcpdiff train --cfg cfgs/pretrain_tiny.yaml` trains.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from hcpdiff.data.sources.scenes import COLORS, PATTERNS, SHAPES

CAPTION_WORDS = "a an on background small large at in the top bottom left right middle"
# Words that no caption of the base model has, so that what users teach the model has names too.
OTHER_WORDS = """
    sks and or of with without two three four five big tiny medium huge thin thick wide tall short round flat
    above below under over behind front next to between near far beside inside outside center corner edge
    arrow moon sun cloud tree leaf flower house car boat fish bird cat dog face eye hand star stars letter number
    hexagon pentagon octagon oval ellipse rectangle line dot dots stripe stripes spiral wave zigzag grid
    crescent drop arc cube sphere cone cylinder box ball shape shapes object pattern texture
    brown gray grey gold silver violet magenta teal navy maroon beige turquoise lime olive crimson
    dark light bright pale soft deep colorful monochrome gradient shaded glowing shiny transparent
    photo picture image drawing painting sketch icon logo sign symbol cartoon pixel art style watercolor ink
    wooden metal paper glass stone grass water sky sand snow brick fabric checked spotted wavy
    horizontal vertical diagonal outlined filled hollow rotated tilted flipped broken half double
    it is are this that one not no very blurry noisy sharp clean simple beautiful
"""
MAX_TOKENS = 16
POSITIONS = 12  # patches per side of the table of positions, so sides are at most 96 pixels


def tokenizer() -> CLIPTokenizer:
    """Byte-level BPE in CLIP's form, in which each of our words is one token."""
    symbols = list(ByteLevel.alphabet())
    named = [*SHAPES, *COLORS, *PATTERNS, *CAPTION_WORDS.split(), *OTHER_WORDS.split()]
    words = [[*word[:-1], word[-1] + "</w>"] for word in dict.fromkeys(named)]
    merges: list[tuple[str, str]] = []
    while any(len(word) > 1 for word in words):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = [_merge(word, merges[-1]) for word in words]
    names = [*sorted(symbols), *(s + "</w>" for s in sorted(symbols)), *dict.fromkeys("".join(pair) for pair in merges)]
    vocab = {name: i for i, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def text_encoder(tokens: CLIPTokenizer, width: int, layers: int, activation: str) -> CLIPTextModelWithProjection:
    """A small CLIP text encoder; SD3 reads its last but one layer and its pooled output."""
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    model = CLIPTextModelWithProjection(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    nn.init.normal_(model.get_input_embeddings().weight, std=0.12)
    return model


def silent_t5(vocab_size: int, width: int) -> T5EncoderModel:
    """A T5 whose output is exactly zero, which is what SD3 is given where there is no T5."""
    model = T5EncoderModel(T5Config(vocab_size=vocab_size, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=1))
    nn.init.zeros_(model.encoder.final_layer_norm.weight)
    return model


def positions(count: int, width: int) -> Tensor:
    """Sine and cosine of (row, column) in waves of 2.5 to 40 patches, so that neighbours differ clearly.

    Returns:
        (1, count * count, width), ordered as diffusers' PatchEmbed, whose own waves are too long for few patches.
    """
    frequencies = 2 * torch.pi / torch.logspace(torch.tensor(2.5).log10(), torch.tensor(40.0).log10(), width // 4)
    angles = torch.arange(count)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, count, -1), waves[None].expand(count, -1, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, count * count, width)


def denoiser(channels: int, context: int) -> SD3Transformer2DModel:
    """3.5M parameters. Every block starts as the identity, and the prediction as zero."""
    model = SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=context,
        caption_projection_dim=128,
        pooled_projection_dim=context,
        pos_embed_max_size=POSITIONS,
        qk_norm="rms_norm",
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if name == "proj_out" or re.search(r"norm\w*\.linear$", name):
            nn.init.zeros_(module.weight)
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.flatten(1))
    nn.init.zeros_(patches.bias)
    model.pos_embed.pos_embed.copy_(positions(POSITIONS, 128))
    return model


def build(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The whole model; untrained but for the VAE."""
    tokens = tokenizer()
    clip_l, clip_g = text_encoder(tokens, 64, 2, "quick_gelu"), text_encoder(tokens, 96, 3, "gelu")
    context = 64 + 96
    return StableDiffusion3Pipeline(
        transformer=denoiser(vae.config.latent_channels, context),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=clip_l,
        tokenizer=tokens,
        text_encoder_2=clip_g,
        tokenizer_2=tokens,
        text_encoder_3=silent_t5(len(tokens), context),
        tokenizer_3=tokens,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    build(AutoencoderKL.from_pretrained(arguments.vae)).save_pretrained(arguments.out)
