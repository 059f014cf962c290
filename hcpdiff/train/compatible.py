"""Whether a checkpoint belongs to this run: one that does not is an error, not a strange continuation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from hcpdiff.config.mistakes import Key, shown

# What a run may have otherwise after every stop: it trains the same.
_FREE = {"name", "exp_dir", "infer"} | {
    f"train.{key}" for key in ("steps", "save_every", "keep_last", "log_every", "preview", "workers", "loggers")
}
_NOTHING = "not set"
AS_IT_WAS = "Resume with the config of that run, or start a new one under another name"


def describe(optimizer: Any) -> dict[str, Any]:
    """An optimizer as the config made it, before a schedule or a step has changed its settings."""
    groups = {
        name: {key: len(value) if key == "params" else repr(value) for key, value in group.items()}
        for name, group in named_groups(optimizer)
    }
    return {"class": class_name(optimizer), "groups": groups}


def named_groups(optimizer: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """An optimizer's parameter groups with the names that the run gave them."""
    for i, group in enumerate(optimizer.param_groups):
        yield str(group.get("name", i)), group


def class_name(value: object) -> str | None:
    """Of an object, with its module; None of None."""
    return None if value is None else f"{type(value).__module__}.{type(value).__qualname__}"


def check_weights(path: Path, saved: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raise unless a checkpoint's weights are those that this run trains."""
    differences = [f"{n} is missing in it" for n in trained if n not in saved]
    differences += [f"{n} is not trained now" for n in saved if n not in trained]
    differences += [
        f"{n} is {list(saved[n].shape)} in it and {list(trained[n].shape)} now"
        for n in trained
        if n in saved and saved[n].shape != trained[n].shape
    ]
    if differences:
        raise ValueError(f"{path}: it is of a run that trains something else: {_some(differences)}. {AS_IT_WAS}")


def check_optimizer(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise unless two descriptions are of one optimizer with the same groups and settings."""
    if saved["class"] != now["class"]:
        raise ValueError(f"{path}: train.optimizer: the run had {saved['class']}, not {now['class']}. {AS_IT_WAS}")
    if list(saved["groups"]) != list(now["groups"]):
        groups = " and ".join(saved["groups"]), " and ".join(now["groups"])
        raise ValueError(f"{path}: the run had the parameter groups {groups[0]}, not {groups[1]}. {AS_IT_WAS}")
    differences = [
        f"{key} of {name} was {saved['groups'][name][key]} and is {value} now"
        for name, group in now["groups"].items()
        for key, value in group.items()
        if saved["groups"][name].get(key, value) != value
    ]
    if differences:
        raise ValueError(f"{path}: train.optimizer: {_some(differences)}. {AS_IT_WAS}")


def check_setting(path: Path, key: str, saved: object, now: object) -> None:
    """Raise unless a setting of the run is what it was."""
    if saved != now:
        raise ValueError(f"{path}: {key}: the run had {saved}, not {now}. {AS_IT_WAS}")


def changes(saved: str | None, now: str | None) -> list[str]:
    """Settings that differ between two configs in YAML and may change the training; none if one is missing."""
    if saved is None or now is None:
        return []
    before, after = _settings(yaml.safe_load(saved)), _settings(yaml.safe_load(now))
    return [
        f"{key} was {before.get(key, _NOTHING)} and is {after.get(key, _NOTHING)} now"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _NOTHING) != after.get(key, _NOTHING)
    ]


def _settings(node: Any, key: Key = ()) -> dict[str, str]:
    """Every value of a config by its key, without those that are free."""
    if shown(key) in _FREE:
        return {}
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if not node or not children:
        return {shown(key): repr(node)}
    return {name: value for part, child in children for name, value in _settings(child, (*key, part)).items()}


def _some(differences: Sequence[str], most: int = 4) -> str:
    more = f" and {len(differences) - most} more" if len(differences) > most else ""
    return "; ".join(differences[:most]) + more
