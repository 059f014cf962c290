"""Mistakes that only show when objects are made: check makes those of hcpdiff that cost nothing, and keeps none.

Nothing of other packages is called, nor what the user trusts: something stands in for it. Models are never made.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from hcpdiff.config import sections
from hcpdiff.config.binding import Call
from hcpdiff.config.building import mistakes_of
from hcpdiff.config.mistakes import Key, parsed
from hcpdiff.config.reading import Reader


class StandIn:
    """Stands for an object that is not made."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a check calls nothing")


class _ReadError(Exception):
    """An optimizer has looked at its settings and asks for the parameters."""


class _Parameters:
    def __iter__(self) -> Any:
        raise _ReadError


def rehearse(tree: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """Note what constructors refuse in a config that has no other mistakes: what was made of those sections.

    What takes long to look at, such as every image, is left to `hcpdiff data` and `hcpdiff train`.
    """
    plans = {
        section: reader.read(tree[section], sections.annotation(section), (section,))
        for section in ("data", "words", "train", "infer", "merge")
        if tree.get(section) is not None
    }
    made = {section: _made(plan, reader) for section, plan in plans.items()}
    _look_into_folders(made.get("data"), plans.get("data"), reader)
    _check_together(made.get("data"), made.get("train"), reader)
    _check_words(made.get("words"), tree.get("plugins") or {}, reader)
    _check_export(made.get("train"), tree.get("finetune") or (), reader)
    optimizer = plans["train"].kwargs.get("optimizer") if isinstance(plans.get("train"), Call) else None
    if isinstance(optimizer, Call):
        _check_optimizer(optimizer, reader)
    return made


def _made(plan: Any, reader: Reader) -> Any:
    """A plan with the calls made that can be, and stand-ins for the others."""
    if isinstance(plan, dict):
        return {name: _made(value, reader) for name, value in plan.items()}
    if isinstance(plan, (list, tuple)):
        return type(plan)(_made(value, reader) for value in plan)
    if not isinstance(plan, Call):
        return plan
    args, kwargs = _made(plan.args, reader), _made(plan.kwargs, reader)
    if plan.partial:
        return functools.partial(plan.target, *args, **kwargs)
    if not _costs_nothing(plan.target):
        return StandIn()
    return _tried(plan, lambda: plan.target(*args, **kwargs), reader, unsure=_has_stand_in((args, kwargs)))


def _costs_nothing(target: Any) -> bool:
    """The classes of hcpdiff but for models: their constructors check their arguments and do little more."""
    ours = inspect.isclass(target) and target.__module__.startswith("hcpdiff.")
    return ours and not target.__module__.startswith("hcpdiff.models.")


def _tried(call: Call, action: Callable[[], Any], reader: Reader, *, unsure: bool = False) -> Any:
    """What an action gives, or a stand-in and a mistake; if `unsure`, only one of a plain argument of the call."""
    try:
        return action()
    except Exception as error:
        for mistake in mistakes_of(call, error, reader):
            name = next(iter(parsed(mistake.key)[len(call.key) :]), None)
            if not unsure or (name in call.kwargs and not _has_stand_in(call.kwargs[name])):
                reader.mistakes.append(mistake)
        return StandIn()


def _has_stand_in(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_stand_in, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_stand_in, value))
    return isinstance(value, (StandIn, Call))


def _look_into_folders(datasets: Any, plans: Any, reader: Reader) -> None:
    """An empty folder, or captions that cannot be read; what is only worth a line in the log waits for the run."""
    folder = sys.modules.get("hcpdiff.data.sources.folder")
    if folder is None or not isinstance(datasets, dict):
        return
    level = folder.log.level
    folder.log.setLevel(logging.ERROR)
    try:
        _check_folders(datasets, plans, reader, folder)
    finally:
        folder.log.setLevel(level)


def _check_folders(datasets: dict[str, Any], plans: Any, reader: Reader, folder: Any) -> None:
    for name, dataset in datasets.items():
        given = plans[name].kwargs.get("source")
        several = isinstance(given, list)
        for plan, source in zip(given if several else [given], getattr(dataset, "sources", ()), strict=False):
            if isinstance(plan, Call) and isinstance(source, folder.FolderSource):
                _tried(plan, source.check, reader)


def _check_together(datasets: Any, train: Any, reader: Reader) -> None:
    """Settings of datasets that make sense, or not, by those of the run."""
    if not isinstance(datasets, dict) or not datasets or _has_stand_in([train, *datasets.values()]) or train is None:
        return
    streams = importlib.import_module("hcpdiff.data.streams").Streams
    for check in (train.check_datasets, lambda given: streams(given, mode=train.datasets)):
        try:
            check(datasets)
        except ValueError as error:
            reader.wrong_text(("data",), str(error))


def _check_words(words: Any, plugins: Any, reader: Reader) -> None:
    """Names that cannot be, or not beside those of the plugins."""
    if isinstance(words, dict):
        try:
            importlib.import_module("hcpdiff.train.words").check_names(words, plugins)
        except ValueError as error:
            reader.wrong_text(("words",), str(error))


def _check_export(train: Any, finetune: Any, reader: Reader) -> None:
    if train is None or isinstance(train, StandIn):
        return
    try:
        train.check_export(finetune)
    except ValueError as error:
        reader.wrong_text(("train",), str(error))


def _check_optimizer(call: Call, reader: Reader) -> None:
    """What an optimizer says of its settings before it looks at the parameters."""
    key: Key = (*call.key, "lr")
    rate = call.kwargs.get("lr")
    if isinstance(rate, (int, float)) and rate <= 0:
        reader.wrong(key, f"{rate!r} would train nothing; use a number above 0")
        return
    kind: Any = call.target
    known = inspect.isclass(kind) and kind.__module__.partition(".")[0] in ("torch", "hcpdiff")
    if not known or not issubclass(kind, importlib.import_module("torch.optim").Optimizer):
        return
    if _has_stand_in([call.args, call.kwargs]):
        return
    try:
        call.target(_Parameters(), *call.args, **call.kwargs)
    except _ReadError:
        pass
    except Exception as error:
        reader.mistakes += mistakes_of(call, error, reader)
