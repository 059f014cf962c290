"""The config in the header of a file that a run wrote, such as a LoRA: what made it, so that it can be made again."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hcpdiff.config.mistakes import ConfigError, Key, Mistake, Origin

if TYPE_CHECKING:
    from omegaconf import DictConfig

SUFFIX = ".safetensors"
CONFIG = "hcpdiff.config"  # its key in the header
_NO_FACTS = (CONFIG, "hcpdiff.plugin")  # long, and shown as a config
_LARGEST = 100 * 2**20  # bytes of a header; safetensors' own limit


def header(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, read without torch.

    Raises:
        ConfigError: it is no such file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _LARGEST else b""
    try:
        return {str(key): str(value) for key, value in json.loads(text).get("__metadata__", {}).items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError([Mistake("", "this is no safetensors file", Origin(path))]) from error


def facts(path: Path) -> list[str]:
    """What the header of a file that a run wrote says of the run, a line each; nothing of a YAML file."""
    said = header(path) if path.suffix == SUFFIX else {}
    own = {key: value for key, value in said.items() if key.startswith(("hcpdiff.", "modelspec."))}
    return [f"{key}: {value}" for key, value in sorted(own.items()) if key not in _NO_FACTS]


def compose(path: Path, shipped: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[Key, Origin]]:
    """`compose.compose` of the config in a file's header. All of it comes from that file, or from an override.

    Raises:
        ConfigError: there is none in it, or an override is wrong.
    """
    from hcpdiff.config.compose import compose as from_yaml

    text = header(path).get(CONFIG)
    if text is None:
        raise ConfigError([Mistake("", "no run of hcpdiff is in its header; give a YAML file", Origin(path))])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder).resolve() / "config.yaml"  # whatever letters the name of the first has
        file.write_text(text, encoding="utf-8")
        try:
            raw, origins = from_yaml(file, shipped, overrides)
        except ConfigError as error:
            raise ConfigError(
                Mistake(m.key, m.text, _moved(m.origin, file, path) if m.origin else None) for m in error.mistakes
            ) from error
    return raw, {key: _moved(origin, file, path) for key, origin in origins.items()}


def _moved(origin: Origin, file: Path, path: Path) -> Origin:
    return Origin(path) if origin.file == file else origin
