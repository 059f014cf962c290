"""Which parameters a run trains, and at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hcpdiff.models.family import ModelFamily
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.plugins.targets import find_layers
from hcpdiff.train.settings import LayerGroup


def parameter_groups(family: ModelFamily, plugins: PluginGroup, finetune: Sequence[LayerGroup]) -> list[dict[str, Any]]:
    """Freeze the family but for the `finetune` layers, and give the optimizer's groups: {params, name, lr?}.

    Raises:
        ValueError: nothing is trained, or an entry of `finetune` trains nothing.
    """
    family.requires_grad_(False)
    owners: dict[nn.Parameter, int] = {}
    for i, group in enumerate(finetune):
        part = family.get_submodule(group.on)
        for ref in find_layers(part, group.layers, where=f"finetune[{i}].layers"):
            owners |= dict.fromkeys(ref.layer.parameters(), i)
    groups = []
    for i, group in enumerate(finetune):
        params = [p for p, owner in owners.items() if owner == i]
        if not params:
            raise ValueError(f"finetune[{i}]: trains nothing; later entries name all of its layers, or they have no weights")
        for p in params:
            p.requires_grad_(True)
        groups.append({"params": params, "name": f"finetune[{i}]"} | ({} if group.lr is None else {"lr": group.lr}))
    groups += [{k: v for k, v in group.items() if v is not None} for group in plugins.param_groups()]
    if not groups:
        raise ValueError("nothing to train: give the config a `plugins` or a `finetune` section")
    return groups


def trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """Every trained parameter by its name in the objective, in a stable order."""
    return {name: p for name, p in objective.named_parameters() if p.requires_grad}
