"""What `_target_` may name. A config is somebody's file: it must not be able to run just any code.

A target is a class, a function or a classmethod, named by its module and its name there. Every step of the path is
checked before it is taken, and the object by where it was *defined*: re-exports and attribute chains lead nowhere.
Of hcpdiff itself a config may name what its packages export for it, see `offers`: nothing that runs, reads or writes.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from hcpdiff.config.mistakes import hint
from hcpdiff.config.offers import offered

# Where the objects that a config may name are defined. Anything below counts; users add to it with --trust.
TRUSTED = {
    "hcpdiff": ("hcpdiff",),
    "torch": ("torch.nn", "torch.optim", "torch.utils.data", "torch.distributions", "torch._C._nn"),
    "torchvision": ("torchvision.transforms", "torchvision.ops"),
    "albumentations": ("albumentations.augmentations", "albumentations.core.composition"),
    "diffusers": (
        "diffusers.configuration_utils",
        "diffusers.loaders",
        "diffusers.models",
        "diffusers.optimization",
        "diffusers.pipelines",
        "diffusers.schedulers",
    ),
    "transformers": (
        "transformers.configuration_utils",
        "transformers.feature_extraction_utils",
        "transformers.image_processing_base",
        "transformers.modeling_utils",
        "transformers.models",
        "transformers.optimization",
        "transformers.processing_utils",
        "transformers.tokenization_python",
        "transformers.tokenization_utils",
        "transformers.tokenization_utils_base",
        "transformers.tokenization_utils_fast",
        "transformers.tokenization_utils_tokenizers",
    ),
    "peft": ("peft.config", "peft.mapping", "peft.mapping_func", "peft.mixed_model", "peft.peft_model", "peft.tuners"),
    "accelerate": ("accelerate.accelerator", "accelerate.utils.dataclasses"),
}
# Refused even if the user trusts the package around it: they load or run code, or reach around these rules.
NEVER = (
    "accelerate.commands",
    "accelerate.launchers",
    "accelerate.test_utils",
    "albumentations.core.serialization",
    "diffusers.commands",
    "diffusers.utils",
    "hcpdiff.cli",
    "hcpdiff.config",
    "hcpdiff.lazy",
    "hcpdiff.webui",
    "torch.classes",
    "torch.compiler",
    "torch.cuda.jiterator",
    "torch.distributed.elastic",
    "torch.distributed.launch",
    "torch.distributed.rpc",
    "torch.distributed.run",
    "torch.export",
    "torch.fx",
    "torch.hub",
    "torch.jit",
    "torch.library",
    "torch.load",
    "torch.multiprocessing",
    "torch.nn.modules.module.torch",
    "torch.onnx",
    "torch.ops",
    "torch.package",
    "torch.save",
    "torch.serialization",
    "torch.storage",
    "torch.testing",
    "torch.utils.benchmark",
    "torch.utils.bottleneck",
    "torch.utils.collect_env",
    "torch.utils.cpp_extension",
    "torch.utils.data.datapipes",
    "torch.utils.model_zoo",
    "transformers.commands",
    "transformers.cli",
    "transformers.dynamic_module_utils",
    "transformers.testing_utils",
    "transformers.utils",
)
# Arguments that make a trusted library run code that it downloads, or unpickle.
REFUSED_ARGUMENTS = {
    "trust_remote_code": (None, False),
    "custom_pipeline": (None,),
    "custom_revision": (None,),
    "code_revision": (None,),
    "weights_only": (None, True),
    "pickle_module": (None,),
}


class TargetError(ValueError):
    """A `_target_` that cannot be used; the text says why and what would be right."""


def named(trust: Iterable[str]) -> list[str]:
    """The packages that the user trusts: from `trust` and HCPDIFF_TRUST (names between commas or spaces)."""
    return [name for name in [*trust, *re.split(r"[\s,:]+", os.environ.get("HCPDIFF_TRUST", ""))] if name]


def areas(trust: Iterable[str]) -> tuple[str, ...]:
    """The modules whose objects a config may name: the trusted ones and the user's."""
    return (*(area for group in TRUSTED.values() for area in group), *named(trust))


def resolve(path: str, trust: Sequence[str] = ()) -> Any:
    """The class, function or classmethod of this path.

    Raises:
        TargetError: it does not exist, or is not trusted.
    """
    allowed = areas(trust)
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise TargetError(f"{path!r} is not a path such as 'torch.optim.AdamW'")
    _check_root(parts[0], path, allowed)
    for part in parts:
        if part.startswith("_"):
            raise TargetError(f"{path!r} is refused: {part!r} is private")
    if _within(path, NEVER) or any(part.startswith("convert_") for part in parts[1:-1]):  # transformers' scripts
        raise TargetError(f"{path!r} is refused: it can load or run code")
    found: Any = _import(parts[0], path)
    for i, name in enumerate(parts[1:], 2):
        found = _step(found, name, ".".join(parts[:i]), path, allowed)
    if isinstance(found, ModuleType):
        raise TargetError(f"{path!r} is a module; use one of {', '.join(_offers(found, allowed)) or 'its classes'}")
    return found


def _check_root(root: str, path: str, allowed: tuple[str, ...]) -> None:
    if root in sys.stdlib_module_names or root in ("hydra", "omegaconf", "yaml"):
        raise TargetError(f"{path!r} is refused: {root} is never trusted")
    roots = sorted({area.partition(".")[0] for area in allowed})
    if root not in roots:
        why = hint(root, roots, f"; targets come from {', '.join(roots)}, or trust its code with --trust {root}")
        raise TargetError(f"{path!r} is refused: {root} is not trusted{why}")


def _import(module: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TargetError(f"{path!r} cannot be imported: {error}") from error


def _step(parent: Any, name: str, here: str, path: str, allowed: tuple[str, ...]) -> Any:
    """The attribute or submodule `name` of `parent`, if it may be used."""
    if isinstance(parent, ModuleType):
        found = _of_module(parent, name, here, path, allowed)
        if isinstance(found, ModuleType):
            if found.__name__ != here:
                raise TargetError(f"{path!r} is refused: {here!r} is the module {found.__name__!r} under another name")
            return found
    elif inspect.isclass(parent):
        if not hasattr(parent, name):
            offers = [n for n in dir(parent) if inspect.ismethod(getattr(parent, n, None)) and not n.startswith("_")]
            raise TargetError(f"{path!r} does not exist: {parent.__name__} has no {name!r}{hint(name, offers)}")
        found = getattr(parent, name)
        if inspect.isfunction(found) and not isinstance(inspect.getattr_static(parent, name), staticmethod):
            raise TargetError(f"{path!r} is a method that needs an object; name the class, or a classmethod of it")
    else:
        raise TargetError(f"{path!r} is refused: {parent!r} is a function, not something to look inside")
    _check_object(found, path, allowed)
    return found


def _of_module(module: ModuleType, name: str, here: str, path: str, allowed: tuple[str, ...]) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        pass
    except ImportError as error:
        raise TargetError(f"{path!r} cannot be imported: {error}") from error
    reachable = any(_within(here, (area,)) or _within(area, (here,)) for area in allowed)
    if reachable and hasattr(module, "__path__") and importlib.util.find_spec(here) is not None:
        return _import(here, path)
    near = hint(name, [offer for offer in dir(module) if not offer.startswith("_")])
    raise TargetError(f"{path!r} does not exist: {module.__name__} has no {name!r}{near}")


def _check_object(found: Any, path: str, allowed: tuple[str, ...]) -> None:
    """Refuse what is no class, function or classmethod, and what was defined outside the allowed modules."""
    classmethod_of = found.__self__ if inspect.ismethod(found) and inspect.isclass(found.__self__) else None
    if not (inspect.isclass(found) or inspect.isfunction(found) or inspect.isbuiltin(found) or classmethod_of):
        raise TargetError(f"{path!r} is neither a class nor a function")
    for defined in (found, classmethod_of):
        if defined is None:
            continue
        place = f"{defined.__module__}.{defined.__qualname__}"
        if not _within(place, allowed) or _within(place, NEVER):
            raise TargetError(f"{path!r} is refused: it is {place}, which is not trusted")
    owner = classmethod_of or found
    if _within(owner.__module__, ("hcpdiff",)) and not offered(owner):
        raise TargetError(f"{path!r} is refused: it is nothing for a config; docs/config.md lists what is")


def _within(path: str, areas: Iterable[str]) -> bool:
    return any(path == area or path.startswith(f"{area}.") for area in areas)


def _offers(module: ModuleType, allowed: tuple[str, ...]) -> list[str]:
    """The classes and functions that a module defines itself."""
    names = [name for name in vars(module) if not name.startswith("_")]
    own = [name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__]
    kinds = [name for name in own if inspect.isclass(vars(module)[name]) or inspect.isfunction(vars(module)[name])]
    if _within(module.__name__, ("hcpdiff",)):
        kinds = [name for name in kinds if offered(vars(module)[name])]
    return [f"{module.__name__}.{name}" for name in kinds if _within(module.__name__, allowed)]
