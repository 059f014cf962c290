"""What `hcpdiff convert` does with a file of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from hcpdiff.formats import convert, word_files
from hcpdiff.formats.single_file import Model
from hcpdiff.formats.tensor_files.opening import INDEX, is_file
from hcpdiff.models import convert_model

LORA, WORDS, MODEL = "a LoRA", "learned words", "a whole model"
FORMS: dict[str, tuple[str, ...]] = {  # what becomes of each kind
    LORA: convert.TARGETS,
    WORDS: get_args(word_files.Format),
    MODEL: ("folder", "single"),
}


def run(path: Path, to: str, out: Path | None, options: Mapping[str, Any]) -> list[Path]:
    """Write a LoRA, learned words or a whole model in another form.

    Args:
        to: one of the kind's `FORMS`.
        out: where to; None is beside `path`, with the form in its name.
        options: those of the command, of which None was not given; each is an argument of what converts the kind.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a form or an option is not for this kind, or the file is not understood.
    """
    path = path.expanduser()
    kind = _kind(path, to)
    does, takes = _KINDS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    if wrong := [name for name in given if name not in takes]:
        option = f"--{wrong[0].replace('_', '-')}"
        raise ValueError(f"{option}: {path} is converted as {kind}, where it does nothing; leave it out")
    return does(path, to, out, **given)


def _kind(path: Path, to: str) -> str:
    """By what is there; where that is no model and no word, by the form."""
    kinds = [kind for kind, forms in FORMS.items() if to in forms]
    if not kinds:
        known = dict.fromkeys(form for forms in FORMS.values() for form in forms)
        raise ValueError(f"to: {to!r} is no form; use one of {', '.join(known)}")
    kind = MODEL if _is_model(path) else WORDS if _has_words(path) else kinds[0]
    if kind not in kinds:
        raise ValueError(f"to: {path} is {kind}, for which {to!r} is no form; use {' or '.join(FORMS[kind])}")
    return kind


def _is_model(path: Path) -> bool:
    if not is_file(path) or not path.exists():
        return (path / INDEX).is_file()
    try:
        Model(path)
    except ValueError:  # of another kind, or broken, which its reader says
        return False
    return True


def _has_words(path: Path) -> bool:
    """Whether it is a file of words, or a folder with such files."""
    files = list(path.iterdir()) if path.is_dir() else [path]
    return any(f.suffix in word_files.SUFFIXES and f.is_file() and word_files.holds_words(f) for f in files)


def _lora(path: Path, to: str, out: Path | None, **options: Any) -> list[Path]:
    return [convert.convert(path, to, out, **options)]


def _words(path: Path, to: str, out: Path | None) -> list[Path]:
    return word_files.convert(path, to, out)


def _model(path: Path, to: str, out: Path | None, **options: Any) -> list[Path]:
    if out is None and not path.exists():
        raise ValueError(f"--out: say where to; there is no file or folder at {path}")
    ending = ".safetensors" if to == "single" else ""
    out = path.with_name(f"{path.stem}-{to}{ending}") if out is None else out
    if to == "single" and out.suffix != ending:
        raise ValueError(f"--out: {out}: the name of a single file ends in {ending}")
    if to == "folder" and is_file(out):
        raise ValueError(f"--out: {out} is the name of a file; a folder's has no {out.suffix}")
    return [convert_model(path, out, **options)]


_KINDS: dict[str, tuple[Callable[..., list[Path]], tuple[str, ...]]] = {  # what converts it, and its options
    LORA: (_lora, ("family", "rank")),
    WORDS: (_words, ()),
    MODEL: (_model, ("dtype", "shard_size", "configs")),
}
