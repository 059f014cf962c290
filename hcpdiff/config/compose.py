"""Hydra composes: the defaults list of a file, then overrides; and the origin of every key."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hcpdiff.config import wording
from hcpdiff.config.interpolation import register_resolvers
from hcpdiff.config.mistakes import ConfigError, Key, Mistake, Origin
from hcpdiff.config.yaml_files import YamlSource, read

REPLACE = "_replace_"


def compose(file: Path, shipped: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[Key, Origin]]:
    """The config at `file` with interpolations as they are, and where every key was set last.

    Hydra's global state is not used, so that a notebook that has its own Hydra keeps it; nor are Hydra's own settings
    (the section `hydra`), with which a config could import any module.
    """
    register_resolvers()
    folders = [file.parent, shipped]
    parsed = _parse(overrides)
    try:
        with _hydra_version(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a defaults list without `_self_`: the file itself comes last
            loader = _loader(folders)
            repository = CachingConfigRepository(loader.repository)
            wanted = _as_hydra_wants(parsed, repository, file.stem)
            defaults = create_defaults_list(repository, file.stem, wanted, prepend_hydra=False, skip_missing=False)
            raw = _merged(loader._load_single_config(default, repository).config for default in defaults.defaults)
            replaced, changes = _replacements(defaults.config_overrides)
            for key in replaced:
                _drop(raw, key)
            loader._apply_overrides_to_config(changes, raw)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError, RecursionError) as error:
        raise ConfigError([wording.reword(error, file, folders)]) from error
    origins: dict[Key, Origin] = {}
    for default in defaults.defaults:
        source = wording.config_file(default.config_path, folders)
        if source is not None:
            _note_file(origins, source, tuple(part for part in (default.package or "").split(".") if part))
    for key in replaced:
        _forget(origins, key)
    for override in changes:
        _note_override(origins, raw, override)
    return raw, origins


@contextmanager
def _hydra_version() -> Iterator[None]:
    """The behaviour of Hydra 1.3 for us, and whatever it was for everybody else afterwards."""
    versions = version.VersionBase.instance()
    before = versions.version_base
    version.setbase("1.3")
    try:
        yield
    finally:
        versions.version_base = before


def _loader(folders: Sequence[Path]) -> ConfigLoaderImpl:
    Plugins.instance().register(YamlSource)
    search_path = ConfigSearchPathImpl()
    for folder in folders:
        search_path.append("hcpdiff", f"{YamlSource.scheme()}://{folder}")
    search_path.append("schema", "structured://")
    return ConfigLoaderImpl(search_path)


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed, mistakes = [], []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except OverrideParseException as error:
            mistakes.append(wording.override_mistake(text, error))
            continue
        if override.key_or_group.split("/")[0].split(".")[0] == "hydra":
            mistakes.append(Mistake(override.key_or_group, "is no setting of hcpdiff; remove it", Origin(None)))
        elif override.is_sweep_override():
            mistakes.append(wording.sweep_mistake(override))
        else:
            parsed.append(override)
    if mistakes:
        raise ConfigError(mistakes)
    return parsed


def _as_hydra_wants(overrides: Sequence[Override], repository: IConfigRepository, name: str) -> list[Override]:
    """Each override with the `+` that Hydra asks for: a group that is not among the defaults yet, a new key."""
    chosen: dict[str, Any] | None = None
    lines = []
    for override in overrides:
        line = override.input_line or ""
        if line.startswith(("+", "~")):
            lines.append(line)
        elif repository.group_exists(override.key_or_group) and isinstance(override.value(), (str, list)):
            if chosen is None:
                defaults = create_defaults_list(repository, name, [], prepend_hydra=False, skip_missing=False)
                chosen = defaults.overrides.known_choices
            lines.append(line if override.get_key_element() in chosen else f"+{line}")
        else:
            lines.append(f"++{line}")
    return OverridesParser.create().parse_overrides(lines)


def _merged(configs: Iterable[Any]) -> DictConfig:
    """The configs, each over the ones before it; a group with `_replace_: true` drops what those say there."""
    merged = OmegaConf.create()
    for config in configs:
        _make_room(merged, config)
        merged.merge_with(config)
    _without_replace(merged)
    return merged


def _make_room(below: DictConfig, above: DictConfig) -> None:
    for name in above:
        child = _group(above, name)
        if child is not None:
            if child.get(REPLACE):
                below.pop(name, None)
            _make_room(_group(below, name) or OmegaConf.create(), child)


def _without_replace(config: DictConfig) -> None:
    config.pop(REPLACE, None)
    for name in config:
        if (child := _group(config, name)) is not None:
            _without_replace(child)


def _replacements(overrides: Sequence[Override]) -> tuple[list[Key], list[Override]]:
    """The groups that overrides replace whole, and the overrides without what says so.

    Both `data.main.source._replace_=true` and `data.main.source={_replace_: true, ...}` say it.
    """
    replaced: list[Key] = []
    rest: list[Override] = []
    for override in overrides:
        key = tuple(override.key_or_group.split("."))
        value = override.value()
        if key[-1] == REPLACE:
            if not isinstance(value, bool):
                raise ConfigError([Mistake(override.key_or_group, "is true or false", Origin(None))])
            replaced += [key[:-1]] if value and not override.is_delete() else []
            continue
        if isinstance(value, dict):
            _take_replacements(cast(dict[Any, Any], override._value), key, replaced)
        rest.append(override)
    return replaced, rest


def _take_replacements(value: dict[Any, Any], key: Key, replaced: list[Key]) -> None:
    """Move every `_replace_` out of the value of an override."""
    if value.pop(REPLACE, False):
        replaced.append(key)
    for name, child in value.items():
        if isinstance(child, dict):
            _take_replacements(child, (*key, str(name)), replaced)


def _drop(config: DictConfig, key: Key) -> None:
    """Remove a group, if it is there."""
    node: DictConfig | None = config
    for part in key[:-1]:
        node = _group(node, part) if node is not None else None
    if node is not None:
        node.pop(key[-1], None)


def _group(node: DictConfig, name: Any) -> DictConfig | None:
    """The group of keys of this name, if it is one and written out."""
    child = node._get_node(name)
    if not isinstance(child, DictConfig) or child._is_none() or child._is_interpolation():
        return None
    return child


def _note_file(origins: dict[Key, Origin], path: Path, package: Key) -> None:
    file = read(path)
    for key in file.lines:
        if key[-1] == REPLACE and _at(file.content, key):
            _forget(origins, (*package, *key[:-1]))
    for key, line in file.lines.items():
        if key[0] != "defaults" and key[-1] != REPLACE:
            _set(origins, (*package, *key), Origin(path, line), replaces=not isinstance(_at(file.content, key), dict))


def _note_override(origins: dict[Key, Origin], raw: DictConfig, override: Override) -> None:
    key: list[str | int] = []
    node: Any = raw
    for part in override.key_or_group.split("."):
        key.append(int(part) if OmegaConf.is_list(node) and part.isdigit() else part)
        node = OmegaConf.select(raw, ".".join(map(str, key)), throw_on_resolution_failure=False)
    if override.is_delete():
        _forget(origins, tuple(key))
    else:
        _set(origins, tuple(key), Origin(None), replaces=not isinstance(override.value(), dict))
        if isinstance(value := override.value(), dict):
            for name in value:
                _set(origins, (*key, name), Origin(None), replaces=True)


def _set(origins: dict[Key, Origin], key: Key, origin: Origin, *, replaces: bool) -> None:
    if replaces:
        _forget(origins, key)
    origins[key] = origin


def _forget(origins: dict[Key, Origin], key: Key) -> None:
    for below in [other for other in origins if other[: len(key)] == key]:
        del origins[below]


def _at(content: Any, key: Key) -> Any:
    for part in key:
        content = content[part] if not isinstance(content, dict) or part in content else None
    return content
