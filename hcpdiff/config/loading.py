"""From a YAML file anywhere, the groups that hcpdiff ships and `key=value` overrides to one config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hcpdiff.config import stored
from hcpdiff.config.mistakes import ConfigError, Key, Mistake, Origin, nearest, parsed, shown, shown_path

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class Config(Mapping[str, Any]):
    """A composed config: plain dicts, lists and values by section, and where each of them came from."""

    file: Path
    tree: dict[str, Any]  # interpolations resolved
    origins: dict[Key, Origin] = field(default_factory=dict)
    trust: tuple[str, ...] = ()  # packages that `_target_` may name besides the ones hcpdiff trusts
    mistakes: list[Mistake] = field(default_factory=list)  # interpolations that lead nowhere
    raw: DictConfig | None = field(default=None, repr=False)  # interpolations as they were written

    def __getitem__(self, section: str) -> Any:
        return self.tree[section]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree)

    def __len__(self) -> int:
        return len(self.tree)

    def change(self, section: str, values: Mapping[str, Any]) -> None:
        """Set keys of a section, as overrides do."""
        self.tree[section] = {**(self.tree.get(section) or {}), **values}
        changed = {(section, name) for name in values}
        kept = {key: origin for key, origin in self.origins.items() if key[:2] not in changed}
        self.origins = kept | {key: Origin(None) for key in changed}
        self.mistakes = [mistake for mistake in self.mistakes if parsed(mistake.key)[:2] not in changed]

    def written(self) -> dict[str, Any]:
        """The sections with their interpolations; empty for a config that no file was composed to."""
        from omegaconf import OmegaConf

        plain: Any = {} if self.raw is None else OmegaConf.to_container(self.raw, resolve=False)
        return plain

    def origin(self, key: Key) -> Origin:
        """Where this key was set last, or the nearest key above it that was."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        return Origin(self.file)


def load(path: str | Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> Config:
    """Compose the config at `path`: a YAML file, or a safetensors file that a run wrote, which has that run's config.

    Its `defaults` list names files in its own folder or among the shipped ones. Paths inside a config are relative to
    the current folder. An interpolation such as `${model.path}` copies what stands there.

    Args:
        overrides: `train.steps=10`, `model=sdxl` (a file of the group `model`), `~train.ema`; Hydra's grammar. A key
            that no file mentions needs no `+`: `check` says whether it exists.
        trust: packages that `_target_` may name besides the ones hcpdiff trusts.

    Raises:
        ConfigError: no such file, one without a config, broken YAML, a group or default that does not exist, a wrong
            override.
    """
    for name, given in (("overrides", overrides), ("trust", trust)):
        if isinstance(given, str):
            raise ConfigError([Mistake(name, f"a text is not a list; use [{given!r}]")])
    from hcpdiff.config.compose import compose
    from hcpdiff.config.interpolation import resolve

    file = find(path)
    read = stored.compose if file.suffix == stored.SUFFIX else compose
    raw, origins = read(file, shipped_folder(), overrides)
    tree, mistakes = resolve(raw, lambda key: _origin(origins, key, file))
    return Config(file, tree, origins, tuple(trust), mistakes, raw)


def _origin(origins: dict[Key, Origin], key: Key, file: Path) -> Origin:
    return Config(file, {}, origins).origin(key)


def shipped_folder() -> Path:
    """The configs that come with hcpdiff: inside the installed package, or at the top of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "cfgs"
    return inside if inside.is_dir() else package.parent / "cfgs"


def find(path: str | Path) -> Path:
    """The config file meant by `path`: as it stands, or else a shipped one (`cfgs/lora.yaml`, or just `lora`)."""
    given = Path(path).expanduser()
    name = given.relative_to("cfgs") if given.parts[:1] == ("cfgs",) else given
    shipped = shipped_folder()
    candidates = [given, Path(f"{given}.yaml"), shipped / name, shipped / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            if candidate.suffix not in (".yaml", stored.SUFFIX):
                raise ConfigError([Mistake("", "the name of a config ends in .yaml; rename it", Origin(candidate))])
            return candidate.absolute()
    folder = given.parent if given.parent.is_dir() else shipped
    here, theirs = (sorted(file.stem for file in place.glob("*.yaml")) for place in (folder, shipped))
    near = nearest(given.stem, sorted({*here, *theirs}), 3)
    rest = f"did you mean {' or '.join(near)}?" if near else f"hcpdiff ships {', '.join(theirs)}"
    raise ConfigError([Mistake("", f"no config at {shown_path(given)}; {rest}")])


def to_yaml(config: Config | Mapping[str, Any] | DictConfig, *, interpolations: bool = False) -> str:
    """The config as YAML that `load` reads back to the same values.

    Args:
        interpolations: keep `${train.steps}` where it was written, so that `train.steps=10` changes that place too. Of
            the time or the environment the value is written in any case.
    """
    from omegaconf import DictConfig, OmegaConf

    if isinstance(config, DictConfig):
        return OmegaConf.to_yaml(config, resolve=True)
    tree = config.tree if isinstance(config, Config) else dict(config)
    if interpolations and isinstance(config, Config):
        tree = _with_interpolations(config.written(), tree)
    else:
        tree = _escaped(tree)
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _with_interpolations(raw: Any, node: Any) -> Any:
    """A resolved tree with the interpolations that it was written with."""
    if isinstance(raw, dict) and isinstance(node, dict):
        return {key: _with_interpolations(raw.get(key), value) for key, value in node.items()}
    if isinstance(raw, list) and isinstance(node, list) and len(raw) == len(node):
        return [_with_interpolations(*pair) for pair in zip(raw, node, strict=True)]
    if isinstance(raw, str) and "${" in raw and set(re.findall(r"\$\{\s*([\w.]+)\s*:", raw)) <= {"pixels"}:
        return raw
    return _escaped(node)


def _escaped(node: Any) -> Any:
    """The same tree with `${` written as `\\${`, so that it is read as text."""
    if isinstance(node, dict):
        return {key: _escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_escaped(value) for value in node]
    if isinstance(node, str):
        return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", node)
    return node


def leaves(config: Config) -> Iterator[tuple[str, Any, Origin]]:
    """(key, value, where it was set) of every value, in the order of the config."""

    def walk(node: Any, key: Key) -> Iterator[tuple[str, Any, Origin]]:
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        if not node or not isinstance(node, (dict, list)):
            yield shown(key), node, config.origin(key)
        for part, child in children:
            yield from walk(child, (*key, part))

    yield from walk(config.tree, ())
