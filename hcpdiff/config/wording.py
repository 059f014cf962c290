"""What Hydra says about a config that cannot be composed, in our words: where, what, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from hcpdiff.config.mistakes import Mistake, Origin, hint
from hcpdiff.config.yaml_files import read


def config_file(name: str | None, folders: Sequence[Path]) -> Path | None:
    """The file of a config that Hydra calls by its name, e.g. `base/train`."""
    candidates = (folder / (name if name and name.endswith(".yaml") else f"{name}.yaml") for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def override_mistake(text: str, error: OverrideParseException) -> Mistake:
    """An override that the grammar does not accept."""
    key, equals, value = text.partition("=")
    if not equals and not text.startswith("~"):
        return Mistake(text, "is not `key=value`", Origin(None))
    if value[:1] in "{[" and value[-1:] in "}]":
        text = f"the value {value!r} cannot be read; put texts with special letters in it in quotes"
        return Mistake(key, text, Origin(None))
    if value[:1] not in ("'", '"') and any(letter in value for letter in "=,{}[]()\"'~"):
        return Mistake(key, f"the value {value!r} needs quotes of its own: {quoted(key, value)}", Origin(None))
    return Mistake(key, f"cannot be read: {str(error).splitlines()[0]}", Origin(None))


def sweep_mistake(override: Override) -> Mistake:
    """`key=a,b`, which Hydra would run twice."""
    key, _, value = (override.input_line or "").partition("=")
    return Mistake(key, f"is it a list or a text? use '{key}=[{value}]' or {quoted(key, value)}", Origin(None))


def quoted(key: str, value: str) -> str:
    """How to type an override whose value has special characters."""
    return f"'{key}=\"{value}\"'" if '"' not in value else f"\"{key}='{value}'\""


def reword(error: BaseException, file: Path, folders: Sequence[Path]) -> Mistake:
    """The mistake that made Hydra raise this error."""
    if isinstance(error, RecursionError):
        return Mistake("defaults", "the file inherits itself; rename it, or remove it from its defaults", Origin(file))
    text = str(error)
    parent = re.match(r"In '(.+?)': ", text)
    source = (config_file(parent[1], folders) if parent else None) or file
    missing = re.search(r"Could not (?:find|load) '(.+?)'", text)
    if missing:
        return _missing(missing[1], source, folders)
    group = re.search(r"Could not override '(.+?)'\.( No match)?", text)
    if group:
        return _no_such_group(group[1], source, folders)
    deleted = re.search(r"Could not delete from config\. '(.+?)' does not exist", text)
    if deleted:
        return Mistake(f"~{deleted[1]}", "there is nothing of this name to delete", Origin(None))
    twice = re.search(r"Multiple values for (\S+?)\.", text)
    if twice:
        said = f"is chosen twice; write `- override /{twice[1]}: ...` for the one that counts, as the last default"
        return Mistake("defaults", f"{twice[1]!r} {said}", _line_of(twice[1], source))
    return Mistake("", " ".join(text.split()) or type(error).__name__, Origin(source))


def _missing(name: str, source: Path, folders: Sequence[Path]) -> Mistake:
    group, _, option = name.rpartition("/")
    options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")} - {source.stem})
    origin = _line_of(option, source)
    if not options:
        groups = sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()})
        near = hint(group, groups, f"; the shipped groups are {', '.join(_groups(folders[-1]))}")
        return Mistake(origin_key(origin), f"there is no config {name!r}, nor a folder {group!r}{near}", origin)
    place = f"there is no {option!r} in {group!r}" if group else f"there is no config {option!r}"
    return Mistake(origin_key(origin), f"{place}; use one of {', '.join(options)}", origin)


def _no_such_group(group: str, source: Path, folders: Sequence[Path]) -> Mistake:
    origin = _line_of(group, source)
    groups = _groups(folders[0]) + _groups(folders[-1])
    near = hint(group, groups, "; remove 'override'")
    text = f"no default before it chooses {group!r}, so there is nothing to override{near}"
    return Mistake(origin_key(origin), text, origin)


def _groups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def origin_key(origin: Origin) -> str:
    """`defaults` when the mistake is in a file, nothing when it is on the command line."""
    return "defaults" if origin.file is not None else ""


def _line_of(word: str, source: Path) -> Origin:
    """The entry of the file's defaults list with this word in it, or the command line when none has."""
    file = read(source)
    for i, entry in enumerate(file.content.get("defaults", [])):
        pieces = (
            [str(piece) for piece in entry] + [str(v) for v in entry.values()] if isinstance(entry, dict) else [entry]
        )
        if any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", str(piece)) for piece in pieces):
            return Origin(source, file.lines[("defaults", i)])
    return Origin(None)
