"""Which parameters a run trains, and at which learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.targets import find_layers
from hcpdiff.train.settings import LayerGroup


def parameter_groups(
    family: ModelFamily,
    plugins: PluginGroup,
    finetune: Sequence[LayerGroup],
    words: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Freeze the family but for the `finetune` layers, and give the optimizer's groups: {params, name, lr?}.

    Args:
        words: the groups of learned words.

    Raises:
        ValueError: nothing is trained, an entry of `finetune` trains nothing, or weights are too coarse to train.
    """
    of_plugins = {p for a in plugins.attachments for p in a.plugin.own_parameters().values()}  # a Wrap is in the family
    base = [p for p in family.parameters() if p not in of_plugins]
    for p in base:
        p.requires_grad_(False)
    owners: dict[nn.Parameter, int] = {}
    for i, group in enumerate(finetune):
        for ref in find_layers(_part(family, group, i), group.layers, where=f"finetune[{i}].layers", prefixes=("re:",)):
            owners |= {p: i for p in ref.layer.parameters() if p not in of_plugins}
    groups = []
    for i, group in enumerate(finetune):
        params = [p for p, owner in owners.items() if owner == i]
        if not params:
            raise ValueError(
                f"finetune[{i}]: trains nothing; later entries name all of its layers, or they have no weights"
            )
        if coarse := {str(p.dtype).removeprefix("torch.") for p in params} - {"float32", "float64"}:
            raise ValueError(
                f"finetune[{i}]: its weights are {' and '.join(sorted(coarse))}, in which small steps are lost; load "
                "the model in float32 and set train.precision: bf16"
            )
        for p in params:
            p.requires_grad_(True)
        groups.append({"params": params, "name": f"finetune[{i}]"} | ({} if group.lr is None else {"lr": group.lr}))
    groups += [{k: v for k, v in group.items() if v is not None} for group in (*plugins.param_groups(), *words)]
    if not groups:
        raise ValueError("nothing to train: give the config a `plugins`, a `words` or a `finetune` section")
    return groups


def _part(family: ModelFamily, group: LayerGroup, index: int) -> nn.Module:
    try:
        return family.get_submodule(group.on)
    except AttributeError:
        parts = ", ".join(name for name, _ in family.named_children())
        where = f"finetune[{index}].on"
        raise ValueError(
            f"{where}: {group.on!r} is no part of {type(family).__name__}; its parts are {parts}"
        ) from None


def trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained parameter by its name in the objective, in a stable order."""
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}
