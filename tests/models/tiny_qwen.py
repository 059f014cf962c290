"""A tiny Qwen-Image with random weights, shaped like the real one."""

from __future__ import annotations

import re
import string
from typing import Any

import torch
from torch import nn

from hcpdiff.models.qwen_image import BEFORE, SCHEDULER
from tests.models.tiny import randomise


def tiny_tokenizer() -> Any:
    """The words and signs of the chat, and single letters; before a prompt it has 34 tokens, like the real one."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split
    from transformers import PreTrainedTokenizerFast

    words = [*dict.fromkeys(re.findall(r"<\|\w+\|>|\w\w+", BEFORE)), "assistant"]
    signs = ["<pad>", "<unk>", *words, "\n", ",", ":", *string.ascii_lowercase]
    model = Tokenizer(WordLevel({sign: i for i, sign in enumerate(signs)}, "<unk>"))
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    model.pre_tokenizer = Sequence([Split(Regex(" "), "removed"), Split(Regex(rf"{either}|\n|."), "isolated")])
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", unk_token="<unk>")


def tiny_qwen_image() -> Any:
    """A stock QwenImagePipeline; images divide by 8."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    text: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": None,
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 2, 2],
                num_res_blocks=1,
                temperal_downsample=[False, True],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 0.7, 1.0, 2.0],
            ),
            text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
            tokenizer=tokenizer,
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=12,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 4, 4),
            ),
        )
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, nn.Module):
            randomise(part.eval(), seed=i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
