"""What the four kinds do with values: tuples, keywords, inputs and outputs, rows of a batch, several calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.plugins import MultiPluginBlock, PluginBlock, PluginInputs, PluginSpec, SinglePluginBlock
from hcpdiff.plugins.attach import attach
from hcpdiff.plugins.values import Items
from tests.plugins.toys import Family, Mixer, Offset, Scaled, Skip, ramp, toy_family, toy_inputs

BRANCHES = {"negative": slice(0, 2), "positive": slice(2, 4)}


class Add(PluginBlock):
    """Adds the source to the target."""

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        super().__init__()

    def forward(self, source: Tensor, value: Tensor) -> Tensor:
        return value + source


class AddText(Add):
    """The same for the text stream."""

    def choose(self, items: Items) -> int | str:
        return "text" if "text" in items else 1


class SpyOn(SinglePluginBlock):
    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        self.seen.append((args, kwargs, output))
        return output


class Gather(MultiPluginBlock):
    """Adds the sum of all sources to each target."""

    def __init__(self, sources: list[nn.Module], targets: list[nn.Module]) -> None:
        super().__init__()
        self.num_targets, self.runs = len(targets), 0

    def forward(self, sources: list[Tensor]) -> list[Tensor]:
        self.runs += 1
        return [torch.stack(sources).sum(0)] * self.num_targets


def test_a_single_plugin_sees_keywords_and_tuples_as_they_are() -> None:
    family = toy_family()
    group = attach(family, {"spy": PluginSpec(SpyOn, layers=["blocks.0"])})
    latents, text = toy_inputs()
    family.denoiser(latents, text)
    ((args, kwargs, output),) = group.plugins("spy")["denoiser.blocks.0"].seen
    assert args == ()
    assert torch.equal(kwargs["text"], text)
    assert isinstance(output, tuple)
    assert len(output) == 2


def record(model: nn.Module, name: str) -> list[Any]:
    """(kwargs, output) of each later call of a layer."""
    seen: list[Any] = []
    model.get_submodule(name).register_forward_hook(lambda m, a, k, o: seen.append((k, o)), with_kwargs=True)
    return seen


@pytest.mark.parametrize("source", ["pre_hook:blocks.0", "blocks.0"])
@pytest.mark.parametrize("target", ["pre_hook:blocks.2", "blocks.2"])
@pytest.mark.parametrize("kind", [Add, AddText])
def test_a_pair_works_on_inputs_and_outputs_on_either_side(source: str, target: str, kind: type[Add]) -> None:
    plain, family = toy_family(), toy_family()
    before = {name: record(plain.denoiser, name) for name in ("blocks.0", "blocks.2")}
    plain.denoiser(*toy_inputs())
    attach(family, {"p": PluginSpec(kind, from_layers=[source], to_layers=[target])})
    after = record(family.denoiser, "blocks.2")
    family.denoiser(*toy_inputs())

    def value(seen: list[Any], layer: str) -> Tensor:
        kwargs, output = seen[0]
        stream = "text" if kind is AddText else "image"
        return kwargs[stream] if layer.startswith("pre_hook:") else output[stream == "text"]

    added = value(before["blocks.0"], source)
    assert torch.equal(value(after, target), value(before["blocks.2"], target) + added)


def test_dict_outputs_keep_their_type_and_keys() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"count": 3, "sample": 2 * x, "other": x}

    family = Family(nn.Sequential(nn.Identity(), Named()))
    attach(family, {"p": PluginSpec(Add, from_layers=["0"], to_layers=["1"])})
    output = family.denoiser(torch.ones(2, 3))
    assert type(output) is dict
    assert list(output) == ["count", "sample", "other"]
    assert torch.equal(output["sample"], 3 * torch.ones(2, 3))


def test_a_value_without_tensors_names_the_plugin() -> None:
    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "words"

    family = Family(nn.Sequential(nn.Identity(), Words()))
    attach(family, {"p": PluginSpec(Add, from_layers=["0"], to_layers=["1"])})
    with pytest.raises(ValueError, match=r"plugins\.p: there is no tensor among \[0\]; override `choose`"):
        family.denoiser(torch.ones(2))


def test_pairs_must_be_as_many_on_both_sides_and_differ() -> None:
    family = toy_family()
    with pytest.raises(ValueError, match=r"from_layers names 3 layers and to_layers 1; they are taken in pairs"):
        attach(family, {"p": PluginSpec(Add, from_layers=[r"re:blocks\.\d"], to_layers=["out"])})
    with pytest.raises(ValueError, match=r"the pair 'conv_in' -> 'out' is named twice"):
        attach(family, {"p": PluginSpec(Add, from_layers=["conv_in"] * 2, to_layers=["out"] * 2)})
    group = attach(family, {"p": PluginSpec(Skip, from_layers=["conv_in"] * 2, to_layers=["blocks.0", "out"])})
    assert list(group.plugins("p")) == ["denoiser.conv_in->denoiser.blocks.0", "denoiser.conv_in->denoiser.out"]


def test_a_target_before_its_source_is_an_error_that_names_the_layer() -> None:
    for spec in (
        PluginSpec(Skip, from_layers=["blocks.1"], to_layers=["blocks.0"]),
        PluginSpec(Mixer, from_layers=["conv_in", "blocks.1"], to_layers=["blocks.0"]),
    ):
        family = toy_family()
        attach(family, {"p": spec})
        for _ in range(2):  # at the second call too, when a value of the first might be left
            with pytest.raises(
                ValueError, match=r"plugins\.p: 'denoiser.blocks.0' is changed before all source layers"
            ):
                family.denoiser(*toy_inputs())


def test_many_sources_reach_many_targets_and_the_plugin_runs_once_a_call() -> None:
    family = Family(nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity()))
    spec = PluginSpec(Gather, from_layers=["pre_hook:", "0"], to_layers=["1", "2"])
    group = attach(family, {"p": spec})
    x = torch.ones(2, 2)
    for _ in range(3):
        assert torch.equal(family.denoiser(x), 5 * x)  # x + 2x, and 2x again
    assert group.plugins("p")["denoiser"].runs == 3


def test_without_gradients_nothing_is_kept_of_a_call() -> None:
    family = toy_family()
    specs = {
        "pair": PluginSpec(Skip, from_layers=["conv_in"], to_layers=["out"]),
        "multi": PluginSpec(Mixer, from_layers=["conv_in"], to_layers=["out"]),
    }
    group = attach(family, specs)
    with torch.no_grad():
        family.denoiser(*toy_inputs())
    for name in specs:
        (plugin,) = group.plugins(name).values()
        assert plugin._state.values == {}
        assert plugin._state.results is None


def test_two_calls_before_backward_have_their_own_values() -> None:
    family = toy_family()
    group = attach(
        family, {"p": PluginSpec(Skip, from_layers=["conv_in"], to_layers=["blocks.2"], options={"start": 0.5})}
    )
    (share,) = (p for g in group.param_groups() for p in g["params"])
    latents, text = toy_inputs()
    losses = [family.denoiser(x, text).square().sum() for x in (latents, 2 * latents)]
    together = torch.autograd.grad(sum(losses), share)[0]
    apart = sum(torch.autograd.grad(family.denoiser(x, text).square().sum(), share)[0] for x in (latents, 2 * latents))
    assert torch.allclose(together, apart)


def test_a_source_inside_one_checkpoint_and_a_target_inside_another_get_equal_gradients() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.on = on

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.a, self.b):
                x = checkpoint(layer, x.tanh(), use_reentrant=False) if self.on else layer(x.tanh())
            return x

    grads = []
    for on in (False, True):
        family = Family(Checkpointed(on))
        group = attach(
            family, {"p": PluginSpec(Mixer, from_layers=["pre_hook:", "a"], to_layers=["b"], options={"start": 0.5})}
        )
        family.denoiser(torch.ones(2, 4, requires_grad=True)).square().sum().backward()
        grads.append([p.grad for p in (*group.parameters(), *family.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(
    "spec",
    [
        PluginSpec(Offset, layers=["blocks.1"], branch="negative", options={"start": 1.0}),
        PluginSpec(Skip, from_layers=["conv_in"], to_layers=["blocks.1"], branch="negative", options={"start": 1.0}),
        PluginSpec(
            Mixer, from_layers=["", "conv_in"][1:], to_layers=["blocks.1"], branch="negative", options={"start": 1.0}
        ),
    ],
    ids=["single", "pair", "multi"],
)
def test_a_branch_changes_only_its_rows(spec: PluginSpec) -> None:
    family, inputs = toy_family(), toy_inputs(batch=4)
    plain = family.denoiser(*inputs)
    group = attach(family, {"p": spec})
    group.feed(PluginInputs(branches=BRANCHES))
    changed = family.denoiser(*inputs)
    assert torch.allclose(changed[2:], plain[2:], atol=1e-6)
    assert not torch.allclose(changed[:2], plain[:2], atol=1e-3)
    whole = attach(toy := toy_family(), {"p": PluginSpec(**vars(spec) | {"branch": None})})
    whole.feed(PluginInputs())
    assert torch.allclose(toy.denoiser(*inputs)[:2], changed[:2], atol=1e-6)


def test_a_branch_reaches_text_encoders_and_needs_guidance() -> None:
    family = toy_family()
    encoder = family.text_encoders["clip_l"]
    spec = PluginSpec(Offset, on="text_encoders.clip_l", layers=["2"], branch="positive", options={"start": 1.0})
    group = attach(family, {"p": spec})
    x = torch.randn(4, 3, 4)
    group.feed(PluginInputs(branches=BRANCHES))
    output = encoder(x)
    group.detach()
    assert torch.equal(output[:2], encoder(x)[:2])
    assert torch.allclose(output[2:], encoder(x)[2:] + ramp(output))
    group.attach()
    group.feed(PluginInputs())
    with pytest.raises(ValueError, match=r"plugins\.p\.branch: 'positive' works in runs with guidance only"):
        encoder(x)
    group.feed(PluginInputs(branches=BRANCHES))
    with pytest.raises(ValueError, match=r"the layer got 3 rows, but the branches have 4 in all"):
        encoder(x[:3])
    with pytest.raises(ValueError, match=r"plugins\.w\.branch: Scaled works on whole batches"):
        attach(family, {"w": PluginSpec(Scaled, layers=["out"], branch="positive")})


def test_a_wrap_passes_attributes_on_and_stands_for_its_host_in_files() -> None:
    family, fresh = toy_family(), toy_family()
    attach(family, {"w": PluginSpec(Scaled, layers=["out", r"re:blocks\.\d"], options={"start": 1.0})})
    assert isinstance(family.denoiser.out, Scaled)
    assert family.denoiser.out.weight is family.denoiser.out.host.weight
    assert family.denoiser.out.in_features == 8
    with pytest.raises(AttributeError, match="nothing"):
        _ = family.denoiser.out.nothing
    state = {key: tensor + 1 for key, tensor in fresh.state_dict().items()}
    assert list(family.state_dict()) == list(state)
    family.load_state_dict(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in family.state_dict().items())
    assert family.denoiser.out.number == 1


def test_a_wrap_takes_every_place_of_a_shared_layer_but_not_that_of_the_model() -> None:
    shared = nn.Linear(2, 2)
    family = Family(nn.Sequential(shared, nn.GELU(), shared))
    group = attach(family, {"w": PluginSpec(Scaled, layers=["2"])})
    assert family.denoiser[0] is family.denoiser[2]
    assert isinstance(family.denoiser[0], Scaled)
    group.detach()
    assert family.denoiser[0] is family.denoiser[2] is shared
    with pytest.raises(ValueError, match="is the whole model, which has no place to take"):
        attach(family, {"w": PluginSpec(Scaled, on="", layers=[""])})


def test_wraps_and_hooks_on_one_layer_stack_in_config_order() -> None:
    orders = (["scaled", "offset"], ["offset", "scaled"])
    outputs = []
    for order in orders:
        family = Family(nn.Sequential(nn.Identity()))
        specs = {
            "scaled": PluginSpec(Scaled, layers=["0"], options={"start": 1.0}),
            "offset": PluginSpec(Offset, layers=["0"], options={"start": 1.0}),
        }
        attach(family, {name: specs[name] for name in order})
        outputs.append(family.denoiser(torch.ones(1, 3)))
    assert torch.equal(outputs[0], torch.tensor([[1.0, 2, 3]]))  # 2x, then + ramp
    assert torch.equal(outputs[1], torch.tensor([[0.0, 2, 4]]))  # + ramp, then doubled
