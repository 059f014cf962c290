"""What holds for every plugin on every model: a table of plugins times a list of promises."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from examples.custom_plugin import ActivationSwap, ResidualSkip
from hcpdiff.plugins import ControlNet, DoRA, LoHa, LoKr, LoRA, PluginGroup, PluginInputs, PluginSpec, WeightChange
from hcpdiff.plugins.attach import attach
from tests.models.tiny import mmdit_inputs
from tests.plugins.toys import Family, Mixer, Offset, Scaled, Skip, mmdit_family, toy_family, toy_inputs

TOY = r"re:blocks\.\d"
MMDIT = r"re:transformer_blocks\.[01]"
ROTATION = {"oft_blocks": [2, 4, 4], "rescale": [8, 1], "dora_scale": [8, 1]}
SPECS: dict[str, dict[str, Callable[[], PluginSpec]]] = {
    "toy": {
        "lora": lambda: PluginSpec(LoRA, layers=["conv_in", TOY], options={"rank": 2}),
        "dora": lambda: PluginSpec(DoRA, layers=["conv_in", TOY], options={"rank": 2}),
        "dora-columns": lambda: PluginSpec(DoRA, layers=["conv_in", TOY], options={"rank": 2, "on_input": True}),
        "loha": lambda: PluginSpec(LoHa, layers=["conv_in", TOY], options={"rank": 2, "tucker": True}),
        "lokr": lambda: PluginSpec(LoKr, layers=["conv_in", TOY], options={"rank": 1, "factor": 2}),
        "change": lambda: PluginSpec(WeightChange, layers=[TOY], options={"shapes": {"diff": [8, 8], "diff_b": [8]}}),
        "rotation": lambda: PluginSpec(WeightChange, layers=[TOY], options={"shapes": ROTATION}),
        "single": lambda: PluginSpec(Offset, layers=[TOY]),
        "pair": lambda: PluginSpec(Skip, from_layers=["pre_hook:conv_in"], to_layers=["blocks.2"]),
        "multi": lambda: PluginSpec(Mixer, from_layers=["pre_hook:", "conv_in"], to_layers=[TOY]),
        "wrap": lambda: PluginSpec(Scaled, layers=[TOY]),
        "swap": lambda: PluginSpec(ActivationSwap, layers=[TOY]),
    },
    "mmdit": {
        "lora": lambda: PluginSpec(LoRA, layers=[MMDIT], options={"rank": 2}),
        "dora": lambda: PluginSpec(DoRA, layers=[MMDIT], options={"rank": 2}),
        "single": lambda: PluginSpec(Offset, layers=[MMDIT]),
        "pair": lambda: PluginSpec(
            ResidualSkip,
            from_layers=["pre_hook:transformer_blocks.0"],
            to_layers=["transformer_blocks.1"],
            options={"width": 32},
        ),
        "multi": lambda: PluginSpec(Mixer, from_layers=["pre_hook:", "context_embedder"], to_layers=[MMDIT]),
        "wrap": lambda: PluginSpec(Scaled, layers=[MMDIT]),
        "controlnet": lambda: PluginSpec(ControlNet, options={"num_layers": 2}),
    },
}
every_case = pytest.mark.parametrize(("model", "kind"), [(model, kind) for model in SPECS for kind in SPECS[model]])


def build(model: str, *, checkpointing: bool = False) -> tuple[Family, Callable[[nn.Module], Tensor]]:
    """A family, and what to run of it."""
    family = toy_family(checkpointing) if model == "toy" else mmdit_family(checkpointing)
    inputs = toy_inputs() if model == "toy" else tuple(mmdit_inputs(family.denoiser.config).values())
    return family, lambda family: family.denoiser(*inputs)


def plug(family: Family, model: str, *kinds: str, seed: int = 0) -> PluginGroup:
    group = attach(family, {kind: SPECS[model][kind]() for kind in kinds}, seed=seed)
    control = torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(2))
    group.feed(PluginInputs({"control_image": control}))
    return group


def shake(group: PluginGroup, seed: int = 0) -> None:
    """Give every plugin an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in group.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)


def trained(group: PluginGroup) -> list[nn.Parameter]:
    return [p for g in group.param_groups() for p in g["params"]]


def traces(family: nn.Module) -> list[object]:
    """Everything that a plugin could leave behind on a model."""
    modules = list(family.modules())
    return [
        [(name, id(module), sorted(vars(module))) for name, module in family.named_modules()],
        [(name, id(p)) for name, p in family.named_parameters()],
        [hook for m in modules for hook in (*m._forward_hooks, *m._forward_pre_hooks)],
        [hook for m in modules for hook in (*m._forward_hooks_with_kwargs, *m._forward_pre_hooks_with_kwargs)],
        list(family.state_dict()),
    ]


@every_case
def test_a_new_plugin_changes_nothing_and_a_trained_one_does(model: str, kind: str) -> None:
    family, run = build(model)
    plain = run(family)
    group = plug(family, model, kind)
    assert torch.allclose(run(family), plain, atol=1e-6)  # joined products of bare layers sum in another order
    shake(group)
    assert not torch.allclose(run(family), plain, atol=1e-4)


@pytest.mark.parametrize("model", SPECS)
@pytest.mark.parametrize("seed", range(4))
def test_plugins_detach_in_any_order_and_leave_no_trace(model: str, seed: int) -> None:
    family, run = build(model)
    plain, before, keys = run(family), traces(family), list(family.state_dict())
    order = random.Random(seed)
    groups = [plug(family, model, kind) for kind in order.sample(list(SPECS[model]), len(SPECS[model]))]
    for group in groups:
        shake(group)
    assert list(family.state_dict()) == keys
    while groups:
        groups.pop(order.randrange(len(groups))).detach()
        alike, _ = build(model)
        for group in groups:
            plug(alike, model, *group.specs).load_state_dict(group.state_dict())
        assert torch.equal(run(family), run(alike)), "the others work as if it had never been there"
    assert torch.equal(run(family), plain)
    assert traces(family) == before


@every_case
def test_a_copy_has_its_own_plugins(model: str, kind: str) -> None:
    family, run = build(model)
    plain = run(family)
    group = plug(family, model, kind)
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
    assert not torch.allclose(run(family), expected, atol=1e-4)


@every_case
def test_compiled_models_see_plugins_that_come_and_go(model: str, kind: str) -> None:
    family, run = build(model)
    plain = run(family)
    compiled = Family(torch.compile(family.denoiser, backend="eager", fullgraph=True))
    assert torch.allclose(run(compiled), plain, atol=1e-5)  # fp32 sums in another order
    group = plug(family, model, kind)
    shake(group)
    assert torch.allclose(run(compiled), run(family), atol=1e-5)
    assert not torch.allclose(run(compiled), plain, atol=1e-4)
    group.detach()
    assert torch.allclose(run(compiled), plain, atol=1e-5)


@every_case
def test_gradients_are_the_same_with_gradient_checkpointing(model: str, kind: str) -> None:
    grads = []
    for checkpointing in (False, True):
        family, run = build(model, checkpointing=checkpointing)
        group = plug(family, model, kind)
        shake(group)
        run(family).square().sum().backward()
        grads.append([p.grad for p in trained(group)])
    assert any(grad is not None for grad in grads[0])
    for plain, recomputed in zip(*grads, strict=True):
        assert (plain is None and recomputed is None) or torch.equal(plain, recomputed)


@every_case
def test_training_moves_the_plugin_and_not_one_bit_of_the_base(model: str, kind: str) -> None:
    family, run = build(model)
    base = copy.deepcopy(family.state_dict())
    group = plug(family, model, kind)
    shake(group)
    start = [p.detach().clone() for p in trained(group)]
    optimizer = torch.optim.AdamW(trained(group), lr=0.1)
    run(family).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, base[key]) for key, tensor in family.state_dict().items())
    moved = [not torch.equal(a, b) for a, b in zip(start, trained(group), strict=True)]
    # What the last copied block of a ControlNet does to its text goes nowhere, as in diffusers.
    assert all(moved) if kind != "controlnet" else sum(moved) > len(moved) / 2


@every_case
def test_weights_that_were_saved_load_bit_by_bit(model: str, kind: str) -> None:
    family, run = build(model)
    group = plug(family, model, kind)
    shake(group)
    again, _ = build(model)
    other = plug(again, model, kind, seed=1)
    assert other.load_state_dict(group.state_dict()).loaded == list(group.state_dict())
    assert torch.equal(run(again), run(family))


@every_case
def test_first_weights_depend_on_the_seed_and_the_plugin_alone(model: str, kind: str) -> None:
    states = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        states.append(plug(build(model)[0], model, kind, seed=5).state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    if kind == "lora":
        other = plug(build(model)[0], model, kind, seed=6).state_dict()
        assert not all(torch.equal(tensor, other[key]) for key, tensor in states[0].items())


@pytest.mark.parametrize(
    "spec",
    [
        PluginSpec(LoRA, layers=[""], options={"rank": 2}),
        PluginSpec(Offset, layers=[""]),
        PluginSpec(Skip, from_layers=["0"], to_layers=[""]),
        PluginSpec(Mixer, from_layers=["pre_hook:", "0"], to_layers=["1", "2"]),
        PluginSpec(Scaled, layers=["0", "2"]),
    ],
    ids=["lora", "single", "pair", "multi", "wrap"],
)
def test_a_sequential_can_be_a_host(spec: PluginSpec) -> None:
    torch.manual_seed(0)
    family = Family(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)))
    x = torch.randn(3, 8)
    plain, before = family.denoiser(x), traces(family)
    group = attach(family, {"p": spec})
    assert torch.equal(family.denoiser(x), plain)
    shake(group)
    assert not torch.allclose(family.denoiser(x), plain)
    assert isinstance(family.denoiser[1], nn.GELU)
    group.detach()
    assert torch.equal(family.denoiser(x), plain)
    assert traces(family) == before


@pytest.mark.slow
def test_compiled_training_with_several_plugins_equals_eager() -> None:
    grads = []
    for compiled in (False, True):
        family, run = build("mmdit")
        group = plug(family, "mmdit", "lora", "controlnet")
        shake(group)
        model = torch.compile(family.denoiser, backend="aot_eager", fullgraph=True) if compiled else family.denoiser
        for _ in range(2):
            group.zero_grad()
            run(Family(model)).square().sum().backward()
        grads.append([p.grad for p in trained(group) if p.grad is not None])
    assert len(grads[0]) == len(grads[1])
    for eager, compiled_grad in zip(*grads, strict=True):
        assert torch.allclose(eager, compiled_grad, rtol=1e-3, atol=1e-4 * eager.abs().max())  # sums in another order


def test_blocks_compiled_in_place_are_not_traced_again_at_every_step() -> None:
    family, run = build("mmdit")
    group = plug(family, "mmdit", "lora", "controlnet", "single")
    shake(group)
    expected = []
    controls = [torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for control in controls:
        group.feed(PluginInputs({"control_image": control}, timesteps=torch.rand(2)))
        expected.append(run(family))
    family.denoiser.compile_blocks(backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=False):
        for i, control in enumerate(controls):
            group.feed(PluginInputs({"control_image": control}, timesteps=torch.rand(2)))
            stance = "fail_on_recompile" if i else "default"
            with torch.compiler.set_stance(stance):
                assert torch.allclose(run(family), expected[i], atol=1e-5)
