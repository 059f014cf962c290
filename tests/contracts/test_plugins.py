"""What holds for every plugin on every model: the table of plugins times the table of promises."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.plugins import LoRA, PluginGroup, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.plugins.toys import (
    Family,
    Mixer,
    Offset,
    Scaled,
    Skip,
    mmdit_args,
    mmdit_family,
    toy_family,
    toy_inputs,
)

BLOCKS = {"toy": r"re:blocks\.\d", "mmdit": r"re:transformer_blocks\.[01]"}


def spec(kind: str, model: str) -> PluginSpec:
    first, *_, last = {
        "toy": ("conv_in", "blocks.1", "blocks.2"),
        "mmdit": ("context_embedder", "transformer_blocks.1"),
    }[model]
    return {
        "lora": lambda: PluginSpec(LoRA, layers=[BLOCKS[model]], options={"rank": 2}),
        "single": lambda: PluginSpec(Offset, layers=[BLOCKS[model]]),
        "pair": lambda: PluginSpec(Skip, from_layers=[f"pre_hook:{first}"], to_layers=[last]),
        "multi": lambda: PluginSpec(Mixer, from_layers=["pre_hook:", first], to_layers=[BLOCKS[model]]),
        "wrap": lambda: PluginSpec(Scaled, layers=[BLOCKS[model]]),
    }[kind]()


KINDS = ["lora", "single", "pair", "multi", "wrap"]
every_plugin = pytest.mark.parametrize("kind", KINDS)
every_model = pytest.mark.parametrize("model", ["toy", "mmdit"])


def build(model: str, *, checkpointing: bool = False) -> tuple[Family, Callable[[nn.Module], Tensor]]:
    """A family, and what to run of it."""
    family = toy_family(checkpointing) if model == "toy" else mmdit_family(checkpointing)
    inputs = toy_inputs() if model == "toy" else mmdit_args(family)
    return family, lambda family: family.denoiser(*inputs)


def shake(group: PluginGroup, seed: int = 0) -> None:
    """Give every plugin an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in group.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)


def traces(family: nn.Module) -> list[object]:
    """Everything that a plugin could leave behind on a model."""
    return [
        [name for name, _ in family.named_modules()],
        [id(module) for module in family.modules()],
        [(name, id(p)) for name, p in family.named_parameters()],
        [hook for m in family.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)],
        [hook for m in family.modules() for hook in (*m._forward_hooks_with_kwargs, *m._forward_pre_hooks_with_kwargs)],
    ]


@every_model
@every_plugin
def test_a_new_plugin_changes_nothing_and_a_trained_one_does(kind: str, model: str) -> None:
    family, run = build(model)
    plain = run(family)
    group = attach(family, {"p": spec(kind, model)})
    assert torch.equal(run(family), plain)
    shake(group)
    assert not torch.allclose(run(family), plain)


@every_model
@pytest.mark.parametrize("seed", range(4))
def test_plugins_detach_in_any_order_and_leave_no_trace(model: str, seed: int) -> None:
    family, run = build(model)
    plain, before, keys = run(family), traces(family), list(family.state_dict())
    order = random.Random(seed)
    names = order.sample(KINDS, len(KINDS))
    groups = [attach(family, {name: spec(name, model)}) for name in names]
    for group in groups:
        shake(group)
    assert list(family.state_dict()) == keys
    while groups:
        groups.pop(order.randrange(len(groups))).detach()
        expected_family, _ = build(model)
        for name, group in [(n, g) for g in groups for n in g.specs]:
            attach(expected_family, {name: spec(name, model)}).load_state_dict(group.state_dict())
        assert torch.equal(run(family), run(expected_family)), "the others work as if it had never been there"
    assert torch.equal(run(family), plain)
    assert traces(family) == before


@every_model
@every_plugin
def test_a_copy_has_its_own_plugins(kind: str, model: str) -> None:
    family, run = build(model)
    plain = run(family)
    group = attach(family, {"p": spec(kind, model)})
    shake(group)
    run(family)
    alone = copy.deepcopy(family)
    other, other_group = copy.deepcopy((family, group))
    pickled, pickled_group = pickle.loads(pickle.dumps((family, group)))
    expected = run(family)
    shake(group, seed=1)
    for twin in (alone, other, pickled):
        assert torch.equal(run(twin), expected)
    for twin, its_group in ((other, other_group), (pickled, pickled_group)):
        its_group.detach()
        assert torch.equal(run(twin), plain)
    assert not torch.allclose(run(family), expected)


@every_model
@every_plugin
def test_compiled_models_see_plugins_that_come_and_go(kind: str, model: str) -> None:
    family, run = build(model)
    plain = run(family)
    compiled = Family(torch.compile(family.denoiser, backend="aot_eager", fullgraph=True))
    assert torch.allclose(run(compiled), plain, atol=1e-5)  # fp32 sums in another order
    group = attach(family, {"p": spec(kind, model)})
    shake(group)
    assert not torch.allclose(run(family), plain)
    assert torch.allclose(run(compiled), run(family), atol=1e-5)
    group.detach()
    assert torch.allclose(run(compiled), plain, atol=1e-5)


@every_model
@every_plugin
def test_gradients_are_the_same_with_gradient_checkpointing(kind: str, model: str) -> None:
    grads = []
    for checkpointing in (False, True):
        family, run = build(model, checkpointing=checkpointing)
        group = attach(family, {"p": spec(kind, model)})
        shake(group)
        run(family).square().sum().backward()
        grads.append([p.grad for g in group.param_groups() for p in g["params"]])
    assert all(g is not None for g in grads[0])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@every_model
@every_plugin
def test_training_moves_the_plugin_and_not_one_bit_of_the_base(kind: str, model: str) -> None:
    family, run = build(model)
    base = copy.deepcopy(family.state_dict())
    group = attach(family, {"p": spec(kind, model)})
    shake(group)
    start = copy.deepcopy(group.state_dict())
    optimizer = torch.optim.AdamW([p for g in group.param_groups() for p in g["params"]], lr=0.1)
    run(family).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, base[key]) for key, tensor in family.state_dict().items())
    assert all(not torch.equal(tensor, start[key]) for key, tensor in group.state_dict().items())


@every_model
@every_plugin
def test_weights_that_were_saved_load_bit_by_bit(kind: str, model: str) -> None:
    family, run = build(model)
    group = attach(family, {"p": spec(kind, model)})
    shake(group)
    again, _ = build(model)
    other = attach(again, {"p": spec(kind, model)}, seed=1)
    report = other.load_state_dict(group.state_dict())
    assert report.loaded == list(group.state_dict())
    assert torch.equal(run(again), run(family))


@every_plugin
def test_first_weights_depend_on_the_seed_alone(kind: str) -> None:
    def start(seed: int) -> list[Tensor]:
        torch.manual_seed(random.randrange(1000))
        return list(attach(build("toy")[0], {"p": spec(kind, "toy")}, seed=seed).state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(start(5), start(5), strict=True))
    if kind == "lora":
        assert not all(torch.equal(a, b) for a, b in zip(start(5), start(6), strict=True))


@every_plugin
def test_a_sequential_can_be_a_host(kind: str) -> None:
    torch.manual_seed(0)
    family = Family(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)))
    x = torch.randn(3, 8)
    plain, before = family.denoiser(x), traces(family)
    group = attach(
        family,
        {
            "p": {
                "lora": PluginSpec(LoRA, layers=[""], options={"rank": 2}),
                "single": PluginSpec(Offset, layers=[""]),
                "pair": PluginSpec(Skip, from_layers=["0"], to_layers=[""]),
                "multi": PluginSpec(Mixer, from_layers=["pre_hook:", "0"], to_layers=["1", "2"]),
                "wrap": PluginSpec(Scaled, layers=["0", "2"]),
            }[kind]
        },
    )
    assert torch.equal(family.denoiser(x), plain)
    shake(group)
    assert not torch.allclose(family.denoiser(x), plain)
    assert [type(child) for child in family.denoiser][1] is nn.GELU
    group.detach()
    assert torch.equal(family.denoiser(x), plain)
    assert traces(family) == before
