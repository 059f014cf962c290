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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hcpdiff.formats.lora_files import BUNDLE, read_tensors, write_tensors
from hcpdiff.formats.tensor_files.reading import safetensors
from hcpdiff.formats.tensor_files.replacing import replacing_file

logger = logging.getLogger(__name__)

Format = Literal["kohya", "onetrainer", "a1111", "diffusers", "bundle"]
SINGLE = {"kohya": "emb_params", "onetrainer": "emp_params", "bundle": "string_to_param.*"}  # of one text encoder
SUFFIXES = (".safetensors", ".pt", ".bin")
# {key in a file: text encoder}; "": the file does not say which.
_ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5", "t5xxl": "t5"}
_ENCODERS |= dict.fromkeys(("emb_params", "emp_params", "string_to_param.*"), "")


def write(
    words: Mapping[str, Mapping[str, Tensor]], path: Path, format: Format, header: Mapping[str, str] | None = None
) -> list[Path]:
    """Write {word: {text encoder: (n, D)}}; see `Words.save`.

    Args:
        header: of safetensors files.
    """
    if format not in get_args(Format):
        raise ValueError(f"format: {format!r} is unknown; use {', '.join(get_args(Format))}")
    header = {"format": "pt", **(header or {})}
    if format == "bundle":
        return [_write(_file(path, "words", ".safetensors"), bundle(words), header)]
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
                written.append(_write(file.with_name(f"{file.stem}.{encoder}{suffix}"), {word: tensor}, header))
        else:
            flat = {word: next(iter(vectors.values()))} if format == "diffusers" else _flat(vectors, format)
            written.append(_write(file, flat, header))
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
            encoder = _ENCODERS.get(key) or _ENCODERS.get(path.stem.rpartition(".")[2], "")
            words.setdefault(word or path.stem, {})[encoder] = tensor.reshape(-1, tensor.shape[-1])
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
    """The files of a folder that have words, by name; or a file itself. What else lies there is logged.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    found = [file for file in files if holds_words(file) or holds_bundle(file)]
    if not found:
        raise FileNotFoundError(f"{path}: no {', '.join(SUFFIXES)} file with learned words here")
    if others := [file.name for file in files if file not in found]:
        logger.info("%s: there are no learned words in %s", path, ", ".join(others))
    return found


def holds_words(path: Path) -> bool:
    """Whether a file has learned words and nothing else."""
    keys = _keys(path)
    return bool(keys) and all(_known(key) or "." not in key or key.startswith(BUNDLE) for key in keys)


def holds_bundle(path: Path) -> bool:
    """Whether a file has learned words within it, as a LoRA may."""
    return path.is_file() and any(key.startswith(BUNDLE) for key in _keys(path))


def convert(path: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Write learned words in another form; their vectors stay what they are.

    Args:
        path: a file of any form, a LoRA with words in it, or a folder of such files.
        to: one of `Format`.
        out: a folder, or the file of a single word or a bundle; None is a folder beside `path` with the form in its
            name. A file per word is called like the word, as that is what most programs go by.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no word in it, or the other form cannot hold it.
    """
    path = Path(path).expanduser()
    words: dict[str, dict[str, Tensor]] = {}
    for file in in_folder(path):
        for word, found in read(file).items():
            if double := found.keys() & words.get(word, {}).keys():
                raise ValueError(f"{path}: several files have vectors of {word!r} for {next(iter(double)) or 'it'}")
            words.setdefault(word, {}).update(found)
    return write(words, path.with_name(f"{path.stem}-{to}") if out is None else Path(out).expanduser(), _format(to))


def _format(name: str) -> Format:
    if name not in get_args(Format):
        raise ValueError(f"to: {name!r} is no form of learned words; use one of {', '.join(get_args(Format))}")
    return name  # pyright: ignore[reportReturnType]


def _known(key: str) -> bool:
    return key.removesuffix("_out") in _ENCODERS


def _keys(path: Path) -> list[str]:
    return list(safetensors([path]).tensors if path.suffix == ".safetensors" else _tensors(path))


def _flat(vectors: Mapping[str, Tensor], format: str) -> dict[str, Tensor]:
    """Tensors by the keys of a format."""
    if len(vectors) == 1 and (only := next(iter(vectors))) not in _ENCODERS:  # e.g. SD's "clip"
        return {SINGLE[format]: vectors[only]}
    long = "t5" if format == "onetrainer" else "t5xxl"
    return {long if encoder == "t5" else encoder: tensor for encoder, tensor in vectors.items()}


def _file(path: Path, name: str, suffix: str) -> Path:
    file = path if path.suffix in SUFFIXES else path / f"{name}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Path:
    write_tensors(path, tensors, header)
    return path


def _write_pt(path: Path, word: str, vectors: Mapping[str, Tensor]) -> Path:
    flat = {key: tensor.detach().cpu().clone() for key, tensor in _flat(vectors, "bundle").items()}
    if "string_to_param.*" in flat:
        content: dict[str, Any] = {"string_to_token": {"*": 265}, "string_to_param": {"*": flat["string_to_param.*"]}}
        content |= {"name": word, "step": 0, "sd_checkpoint": None, "sd_checkpoint_name": None}
    else:
        content = dict(flat)
    with replacing_file(path) as file:
        torch.save(content, file)
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
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a torn file, torch's unpickler raises anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: this cannot be read, at least not without running code in it: {reason}") from None
