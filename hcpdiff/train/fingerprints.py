"""What tells an encoder from another one, for the keys of caches; and in words, for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.models.text.placeholders import learned_vectors, learned_words

_THREADS = 8


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights with their names and dtypes, and of its settings: what its output depends on.

    The vectors of words that are attached to text encoders are among them.
    """
    tensors = list(module.state_dict().items())
    for path, part in module.named_modules():
        tensors += [(f"{path} word {i}", vectors) for i, vectors in enumerate(learned_vectors(part))]
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing lets other threads run
        hashes = pool.map(_hash, [tensor for _, tensor in tensors])
        digest = hashlib.blake2b(digest_size=16)
        for (name, tensor), content in zip(tensors, hashes, strict=True):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + content)
    for path, part in module.named_modules():
        digest.update(f"{path} {type(part).__name__} {_settings(part)}".encode())
    return digest.hexdigest()


def of_tokenizer(tokenizer: Any) -> str:
    """A hash of all that decides which ids a text gets: vocabulary, rules, learned words and length."""
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content |= {"padding": None, "truncation": None}  # of its last call
    else:
        content = tokenizer.get_vocab()
    rules = [tokenizer.model_max_length, tokenizer.padding_side, tokenizer.pad_token, type(tokenizer).__name__]
    text = json.dumps([content, rules, learned_words(tokenizer)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def in_words(module: nn.Module) -> str:
    """E.g. "AutoencoderKL, 84 million parameters, float32"."""
    parts = module.values() if isinstance(module, nn.ModuleDict) else [module]
    kinds = " and ".join(type(part).__name__ for part in parts)
    count = sum(p.numel() for p in module.parameters())
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()}))
    return f"{kinds}, {count / 1e6:.3g} million parameters, {dtypes}"


def _hash(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(content.data, digest_size=16).digest()


def _settings(module: nn.Module) -> str:
    """Of a model that carries its config, such as a VAE with its scale; where it was loaded from is left out."""
    config = getattr(module, "config", None)
    if config is not None and hasattr(config, "to_diff_dict"):
        config = config.to_diff_dict()
    if not isinstance(config, Mapping):
        return ""
    return repr(sorted((key, value) for key, value in config.items() if not key.startswith("_") and key not in _WHERE))


_WHERE = {"transformers_version", "torch_dtype", "dtype", "name_or_path"}
