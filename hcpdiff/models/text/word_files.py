"""Files of learned words, as other programs write and read them.

emb_params                            kohya, SD 1 and 2
emp_params                            OneTrainer, SD 1 and 2
clip_l, clip_g, t5xxl or t5           kohya, ComfyUI, OneTrainer: models with several text encoders
string_to_param.*                     AUTOMATIC1111's web UI
<the word>                            diffusers, a file for each text encoder
bundle_emb.<word>.<one of the above>  within a LoRA
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)

Format = Literal["kohya", "onetrainer", "a1111", "diffusers", "bundle"]
BUNDLE = "bundle_emb."
SINGLE = {"kohya": "emb_params", "onetrainer": "emp_params", "bundle": "string_to_param.*"}  # of one text encoder
SUFFIXES = (".safetensors", ".pt", ".bin")
# {key in a file: text encoder}; "": the file does not say which.
_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5", "t5xxl": "t5"}
_ENCODERS |= dict.fromkeys(("emb_params", "emp_params", "string_to_param.*"), "")


def write(words: Mapping[str, Mapping[str, Tensor]], path: Path, format: Format) -> list[Path]:
    """Write {word: {text encoder: (n, D)}}; see `Words.save`."""
    if format not in get_args(Format):
        raise ValueError(f"format: {format!r} is unknown; use {', '.join(get_args(Format))}")
    if format == "bundle":
        return [_write(_file(path, "words", ".safetensors"), bundle(words))]
    suffix = ".pt" if format == "a1111" else ".safetensors"
    if path.suffix in SUFFIXES and len(words) != 1:
        raise ValueError(f"{path}: {len(words)} words do not go into one file of {format}; give a folder, or 'bundle'")
    if path.suffix in SUFFIXES and path.suffix != suffix:
        raise ValueError(f"{path}: files of {format} end with {suffix}")
    written = []
    for word, vectors in words.items():
        file = _file(path, word, suffix)
        if format == "a1111":
            written.append(_write_pt(file, word, vectors))
        elif format == "diffusers" and len(vectors) > 1:
            for encoder, tensor in vectors.items():
                written.append(_write(file.with_name(f"{file.stem}.{encoder}{suffix}"), {word: tensor}))
        else:
            written.append(
                _write(file, {word: next(iter(vectors.values()))} if format == "diffusers" else _flat(vectors, format))
            )
    return written


def bundle(words: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Words as tensors of a LoRA's file."""
    if dotted := [word for word in words if "." in word]:
        raise ValueError(f"words.{dotted[0]}: a bundle's words have no dots in their names")
    return {
        f"{BUNDLE}{word}.{key}": tensor.detach()
        for word, vectors in words.items()
        for key, tensor in _flat(vectors, "bundle").items()
    }


def read(path: Path) -> dict[str, dict[str, Tensor]]:
    """{word: {text encoder, or "" where the file does not say it: (n, D)}} of a file of any format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no words.
    """
    words: dict[str, dict[str, Tensor]] = {}
    tensors = _tensors(path)
    if bundled := {key.removeprefix(BUNDLE): tensor for key, tensor in tensors.items() if key.startswith(BUNDLE)}:
        split = {key: key.partition(".")[::2] for key in bundled}
        named = [(word, key, bundled[full]) for full, (word, key) in split.items()]
    else:
        named = [("" if _known(key) else key, key, tensor) for key, tensor in tensors.items()]
    for word, key, tensor in named:
        if key.endswith("_out"):
            logger.warning("%s: %s is not read: vectors for what comes out of a text encoder", path, key)
        elif (not bundled and word and "." in word) or tensor.ndim not in (1, 2) or not tensor.is_floating_point():
            raise ValueError(f"{path}: {key!r} of shape {tuple(tensor.shape)} is no learned word")
        else:
            words.setdefault(word or path.stem, {})[_ENCODERS.get(key, "")] = tensor.reshape(-1, tensor.shape[-1])
    if not words:
        raise ValueError(f"{path}: there is no learned word in it")
    return words


def read_one(path: Path, word: str) -> dict[str, Tensor]:
    """The vectors for a word, which the file may call by another name if it has no other."""
    words = read(path)
    if word not in words and len(words) != 1:
        raise ValueError(f"words.{word}: {path} has {', '.join(words)}; use one of these names")
    return words.get(word, next(iter(words.values())))


def in_folder(path: Path) -> list[Path]:
    """The files of a folder that may have words, by name; or a file itself."""
    if not path.is_dir():
        return [path]
    if not (files := sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)):
        raise FileNotFoundError(f"{path}: no {', '.join(SUFFIXES)} file here")
    return files


def _known(key: str) -> bool:
    return key.removesuffix("_out") in _ENCODERS


def _flat(vectors: Mapping[str, Tensor], format: str) -> dict[str, Tensor]:
    """Tensors by the keys of a format."""
    if list(vectors) == ["clip"]:
        return {SINGLE[format]: vectors["clip"]}
    long = "t5" if format == "onetrainer" else "t5xxl"
    return {long if encoder == "t5" else encoder: tensor for encoder, tensor in vectors.items()}


def _file(path: Path, name: str, suffix: str) -> Path:
    file = path if path.suffix in SUFFIXES else path / f"{name}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, {"format": "pt"})
    temporary.replace(path)
    return path


def _write_pt(path: Path, word: str, vectors: Mapping[str, Tensor]) -> Path:
    flat = {key: tensor.detach().cpu().clone() for key, tensor in _flat(vectors, "bundle").items()}
    if list(vectors) == ["clip"]:
        content: dict[str, Any] = {"string_to_token": {"*": 265}, "string_to_param": {"*": flat["string_to_param.*"]}}
        content |= {"name": word, "step": 0, "sd_checkpoint": None, "sd_checkpoint_name": None}
    else:
        content = dict(flat)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, temporary)
    temporary.replace(path)
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, `string_to_param` unpacked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of learned words")
    content = _content(path)
    if isinstance(content, Tensor):
        return {"emb_params": content}
    if isinstance(content, Mapping) and isinstance(inner := content.get("string_to_param"), Mapping):
        return {"string_to_param.*": next(iter(inner.values()))}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: there is no learned word in it")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a torn file, torch's unpickler raises anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: this cannot be read, at least not without running code in it: {reason}") from None
