"""YAML files with the line of every key, for Hydra to compose.

Booleans are YAML 1.2's: only `true` and `false`. YAML 1.1 reads the key `on:` as True, and the caption `no` as False.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from hcpdiff.config.mistakes import ConfigError, Key, Mistake, Origin, hint

_BOOL = "tag:yaml.org,2002:bool"


class _Loader(get_yaml_loader()):
    """OmegaConf's (1e-4 is a float, a duplicate key is an error), with the booleans of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for letter, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


@dataclass(frozen=True)
class YamlFile:
    """The content of a file and where each of its keys and list items stands."""

    path: Path
    content: Any
    lines: dict[Key, int] = field(default_factory=dict)


def read(path: Path) -> YamlFile:
    """Parse one file, once for each of its versions; the content must not be changed.

    Raises:
        ConfigError: broken YAML, with line and column.
    """
    stat = path.stat()
    return _read(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _read(path: Path, _version: tuple[int, int]) -> YamlFile:
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        content = {} if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        origin = Origin(path, mark.line + 1, mark.column + 1) if mark else Origin(path)
        raise ConfigError(
            [Mistake("", f"broken YAML: {_explain(error.problem or 'it cannot be read')}", origin)]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([Mistake("", f"not a YAML text file: {error}".replace("\n", " "), Origin(path))]) from error
    if not isinstance(content, dict):
        raise ConfigError([Mistake("", "a config is made of `key: value` lines", Origin(path))])
    lines: dict[Key, int] = {}
    _note_lines(node, (), lines)
    return YamlFile(path, content, lines)


def _note_lines(node: yaml.Node | None, key: Key, lines: dict[Key, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                lines[(*key, name.value)] = name.start_mark.line + 1
                _note_lines(value, (*key, name.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*key, i)] = value.start_mark.line + 1
            _note_lines(value, (*key, i), lines)


def _explain(problem: str) -> str:
    if problem.startswith("found duplicate key"):
        return f"{problem.removeprefix('found ')}; keep one of the two"
    if "mapping values are not allowed" in problem:
        return "a second ':' in one line, or wrong indentation; put text that contains ': ' in quotes"
    if "cannot start any token" in problem:
        return f"{problem}; indent with spaces, and put text that starts with a special character in quotes"
    return problem


def _refuse_what_hydra_lets_pass(source: YamlFile) -> None:
    """A `hydra` section can import any module (`searchpath: [pkg://...]`); a misspelt `override` is ignored."""
    mistakes = []
    if "hydra" in source.content:
        mistakes.append(("hydra", "is no section of a config; remove it", ("hydra",)))
    defaults = source.content.get("defaults", [])
    if not isinstance(defaults, list):
        mistakes.append(("defaults", "is a list of files; start each with '- '", ("defaults",)))
    for i, entry in enumerate(defaults if isinstance(defaults, list) else ()):
        name = next(iter(entry), "") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or not name or (isinstance(entry, dict) and len(entry) != 1):
            mistakes.append(
                (f"defaults[{i}]", "is not `file`, `group: option` or `override group: option`", ("defaults", i))
            )
            continue
        for word in set(name.split()[:-1]) - {"override", "optional"}:
            text = f"{word!r} means nothing here{hint(word, ['override', 'optional'])}"
            mistakes.append((f"defaults[{i}]", text, ("defaults", i)))
    if mistakes:
        raise ConfigError(Mistake(key, text, Origin(source.path, source.lines[at])) for key, text, at in mistakes)


class YamlSource(ConfigSource):
    """A folder of configs that Hydra composes from."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.folder = Path(self.path)

    @staticmethod
    def scheme() -> str:
        return "hcpdiff"

    def file(self, config_path: str) -> Path:
        """Where the config of this name is, or would be."""
        return self.folder / self._normalize_file_name(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        path = self.file(config_path)
        if not path.is_file():
            raise ConfigLoadError(f"Config not found: {path}")
        source = read(path)
        _refuse_what_hydra_lets_pass(source)
        return ConfigResult(
            config=OmegaConf.create(source.content),
            path=self.full_path(),
            provider=self.provider,
            header=self._get_header_dict(path.read_text(encoding="utf-8")[:512]),
        )

    def available(self) -> bool:
        return self.folder.is_dir()

    def is_group(self, config_path: str) -> bool:
        return (self.folder / config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return self.file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        files: list[str] = []
        for path in sorted((self.folder / config_path).iterdir()):
            self._list_add_result(files, str(Path(config_path) / path.name), path.name, results_filter)
        return files
