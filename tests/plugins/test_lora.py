from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.plugins import LoRA, PluginGroup, PluginInputs, PluginSpec
from hcpdiff.plugins.attach import attach
from tests.plugins.toys import Family, Offset, Scaled, toy_family, toy_inputs

CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, 3, padding=2, dilation=2, bias=False),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    nn.Conv2d(4, 6, 1),
]


def plugged(layer: nn.Module, **options: object) -> tuple[Family, PluginGroup, LoRA]:
    """A family of one layer, with a LoRA that has an effect."""
    family = Family(nn.Sequential(layer)).requires_grad_(False)
    group = attach(family, {"style": PluginSpec(LoRA, layers=["0"], options={"rank": 4} | options)})
    shake(group)
    (lora,) = group.plugins("style").values()
    assert isinstance(lora, LoRA)
    return family, group, lora


def shake(group: PluginGroup) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in group.state_dict().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)


def test_it_adds_alpha_over_rank_times_b_times_a() -> None:
    host, x = nn.Linear(5, 3), torch.randn(2, 7, 5)
    family, _, lora = plugged(host, rank=2, alpha=3)
    expected = nn.functional.linear(x, host.weight + 1.5 * lora.lora_B.weight @ lora.lora_A.weight, host.bias)
    assert torch.allclose(family.denoiser(x), expected, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), *CONVOLUTIONS])
@pytest.mark.parametrize("bias", [False, True])
def test_fusing_keeps_the_output_and_unfusing_restores_every_bit(layer: nn.Module, bias: bool) -> None:
    x = torch.randn(2, 9, 9, 4) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 9, 9)
    family, group, _ = plugged(copy.deepcopy(layer), bias=bias)
    before = {key: tensor.clone() for key, tensor in family.state_dict().items()}
    live = family.denoiser(x)
    group.fuse()
    assert torch.allclose(family.denoiser(x), live, atol=1e-5)  # fp32 sums in another order
    assert not torch.equal(family.state_dict()["denoiser.0.weight"], before["denoiser.0.weight"])
    group.unfuse()
    assert torch.equal(family.denoiser(x), live)
    assert family.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in family.state_dict().items())


@pytest.mark.parametrize(
    ("rank", "expected"), [(4, 4), (0.25, 15), (0.001, 1), (1.0, 60), (0.125, 8)], ids=str
)  # round(7.5) is 8
def test_rank_is_a_number_or_a_share_of_the_output_width(rank: float, expected: int) -> None:
    lora = LoRA(nn.Linear(10, 60), rank=rank)
    assert lora.rank == expected
    assert lora.lora_A.weight.shape == (expected, 10)
    assert lora.lora_B.weight.shape == (60, expected)
    assert lora.scale == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: 0 is no rank"),
        ({"rank": 1.5}, "rank: 1.5 is no rank"),
        ({"rank": True}, "rank: True is no rank"),
        ({"rank": 4, "alpha": 0}, "alpha: 0 would change nothing"),
        ({"rank": 4, "dropout": 1.0}, "dropout: 1.0 is no probability below 1"),
        ({}, r"plugins\.style\.rank: LoRA needs it"),
        ({"rank": 4, "rnk": 1}, r"plugins\.style\.rnk: LoRA has no such option; close names: rank"),
        ({"rank": 4, "generator": None}, r"plugins\.style\.generator: LoRA has no such option"),
    ],
)
def test_settings_that_cannot_be_meant_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(Family(nn.Sequential(nn.Linear(2, 2))), {"style": PluginSpec(LoRA, layers=["0"], options=options)})


def test_dropout_is_on_the_low_rank_branch_and_off_in_eval() -> None:
    x = torch.ones(1, 64, 8)
    host = nn.Linear(8, 8)
    family, _, lora = plugged(host, dropout=0.5)
    with torch.no_grad():
        family.eval()
        assert torch.equal(family.denoiser(x)[0, 0], family.denoiser(x)[0, 1])
        family.train()
        rows = family.denoiser(x)[0] - host(x).sub(_low_rank(lora, x))[0]
        assert rows.unique(dim=0).shape[0] > 10
        assert not (family.denoiser(x) == 0).any()


def _low_rank(lora: LoRA, x: Tensor) -> Tensor:
    return lora.scale * lora.lora_B(lora.lora_A(x))


def test_plugins_are_in_the_mode_of_their_layers_compiled_or_not() -> None:
    family, _, lora = plugged(nn.Linear(8, 8), dropout=0.5)
    x = torch.ones(64, 8)
    for model in (family.denoiser, torch.compile(family.denoiser, backend="eager", fullgraph=True)):
        for training in (True, False, True):
            family.train(training)
            rows = len(model(x).unique(dim=0))
            assert rows > 10 if training else rows == 1
            assert lora.training == training


def test_inputs_may_be_strided_or_given_by_keyword() -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    family = Family(Caller())
    shake(attach(family, {"style": PluginSpec(LoRA, layers=["layer"], options={"rank": 2})}))
    x = torch.randn(4, 3, 5).transpose(0, 2)
    assert torch.allclose(family.denoiser(x), family.denoiser(x.contiguous()), atol=1e-6)
    assert torch.allclose(family.denoiser(x[0, 0]), family.denoiser(x)[0, 0], atol=1e-6)


def test_float32_weights_compute_in_the_type_of_a_bfloat16_base() -> None:
    family, _, lora = plugged(nn.Linear(16, 16).to(torch.bfloat16))
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    output = family.denoiser(x)
    assert output.dtype is torch.bfloat16
    output.float().sum().backward()
    assert lora.lora_A.weight.dtype is lora.lora_A.weight.grad.dtype is torch.float32
    expected = family.denoiser[0].weight.float() + lora.delta()["weight"]
    plain = nn.functional.linear(x.float(), expected, family.denoiser[0].bias.float())
    assert torch.allclose(output.float(), plain, atol=0.1)  # bf16 has 8 bits


def test_autocast_computes_in_its_type() -> None:
    family, _, _ = plugged(nn.Linear(16, 16))
    x = torch.randn(3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = family.denoiser(x)
    assert output.dtype is torch.bfloat16
    assert torch.allclose(output.float(), family.denoiser(x), atol=0.1)


def test_several_on_one_layer_add_up_and_come_off_alone() -> None:
    family, x = Family(nn.Sequential(nn.Linear(4, 4))), torch.randn(3, 4)
    plain = family.denoiser(x)
    spec = PluginSpec(LoRA, layers=["0"], options={"rank": 2})
    group = attach(family, {"a": spec, "b": spec})
    shake(group)
    both = family.denoiser(x)
    group.detach("a")
    only_b = family.denoiser(x)
    group.attach("a")
    group.detach("b")
    only_a = family.denoiser(x)
    assert torch.allclose(both - plain, (only_a - plain) + (only_b - plain), atol=1e-5)
    group.attach("b")
    group.fuse()
    assert torch.allclose(family.denoiser(x), both, atol=1e-5)
    group.detach()
    assert torch.equal(family.denoiser(x), plain)


def test_overrides_change_rank_alpha_and_lr_of_the_layers_they_name() -> None:
    family = toy_family()
    spec = PluginSpec(
        LoRA,
        layers=[r"re:blocks\.\d\.to_[qk]"],
        lr=1e-4,
        options={"rank": 2},
        overrides={r"re:.*to_q": {"rank": 4, "lr": 1e-3}, "blocks.0.to_q": {"alpha": 1.0}},
    )
    group = attach(family, {"style": spec})
    loras = group.plugins("style")
    assert [(lora.rank, lora.alpha) for lora in loras.values()] == [(4, 1), (2, 2), (4, 4), (2, 2), (4, 4), (2, 2)]
    groups = {g["name"]: (g["lr"], len(g["params"])) for g in group.param_groups()}
    assert groups == {"style": (1e-4, 6), "style (lr 0.001)": (1e-3, 6)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"overrides": {"blocks.1.to_q": {"lr": 1.0}}},
            r"overrides\.blocks\.1\.to_q: matches none of the 1 layers.*close",
        ),
        ({"overrides": {"blocks.0.to_q": {}}}, "say what differs on these layers"),
        ({"overrides": {"blocks.0.to_q": {"rnk": 1}}}, r"overrides\.blocks\.0\.to_q\.rnk: LoRA has no such option"),
        ({"overrides": {"blocks.0.to_q": {"lr": 1.0}}, "train": False}, "because train is false"),
        ({"lr": 1e-3, "train": False}, r"plugins\.style\.lr: it would do nothing, because train is false"),
        ({"lr": 0}, r"plugins\.style\.lr: 0 would train nothing"),
        ({"on": "denoizer"}, r"plugins\.style\.on: 'denoizer' is no part of Family; close names: denoiser"),
        ({"from_layers": ["conv_in"]}, r"plugins\.style\.from_layers: LoRA takes layers"),
        ({"layers": []}, r"plugins\.style\.layers: the list is empty"),
        ({"layers": ["pre_hook:out"]}, r"'pre_hook:' does not fit here"),
    ],
)
def test_a_setting_that_would_do_nothing_is_an_error(changes: dict[str, object], message: str) -> None:
    spec = PluginSpec(LoRA, **{"layers": ["blocks.0.to_q"], "options": {"rank": 2}} | changes)
    family = toy_family()
    with pytest.raises(ValueError, match=message):
        attach(family, {"fine": PluginSpec(Offset, layers=["out"]), "style": spec})
    assert not any(module._forward_hooks for module in family.modules()), "all or nothing"


def test_a_learning_rate_for_a_plugin_without_weights_is_an_error() -> None:
    class Nothing(Offset):
        def __init__(self, host: nn.Module) -> None:
            super().__init__(host)
            del self.number

    with pytest.raises(ValueError, match=r"plugins\.n\.lr: Nothing has nothing to train"):
        attach(toy_family(), {"n": PluginSpec(Nothing, layers=["out"], lr=1.0)})


@pytest.mark.parametrize("name", ["two words", "", "a.b", "keys", "train"])
def test_names_that_cannot_be_keys_are_errors(name: str) -> None:
    with pytest.raises(ValueError, match="a plugin cannot be called this"):
        attach(toy_family(), {name: PluginSpec(Offset, layers=["out"])})


def test_a_frozen_plugin_works_and_does_not_train() -> None:
    family = toy_family()
    group = attach(family, {"style": PluginSpec(LoRA, layers=["blocks"], options={"rank": 2}, train=False)})
    assert group.param_groups() == []
    assert not group.trains_on("denoiser")
    shake(group)
    assert not family.denoiser(*toy_inputs()).requires_grad


def test_which_part_is_trained_is_known() -> None:
    group = attach(
        toy_family(), {"words": PluginSpec(LoRA, on="text_encoders", layers=["clip_l"], options={"rank": 1})}
    )
    assert group.trains_on("text_encoders")
    assert group.trains_on("text_encoders.clip_l")
    assert not group.trains_on("text_encoders.clip")
    assert not group.trains_on("denoiser")


def test_strength_scales_the_update_and_is_fixed_while_fused() -> None:
    host, x = nn.Linear(4, 4), torch.randn(3, 4)
    family, group, _ = plugged(host)
    full = family.denoiser(x)
    group.set_strength("style", 0.5)
    half = family.denoiser(x)
    group.set_strength("style", 0.0)
    none = family.denoiser(x)
    assert torch.allclose(half, (full + none) / 2, atol=1e-5)
    group.set_strength("style", 0.5)
    group.fuse()
    assert torch.allclose(family.denoiser(x), half, atol=1e-5)
    with pytest.raises(ValueError, match=r"plugins\.style: its strength is fixed while it is fused"):
        group.set_strength("style", 1.0)
    with pytest.raises(ValueError, match=r"plugins\.stile: there is no such plugin, only style"):
        group.set_strength("stile", 1.0)


def test_a_plugin_without_strength_says_so() -> None:
    group = attach(toy_family(), {"p": PluginSpec(Offset, layers=["out"])})
    group.set_strength("p", 1.0)
    with pytest.raises(ValueError, match=r"plugins\.p: Offset has no strength to set"):
        group.set_strength("p", 0.5)


def test_fusing_is_refused_where_it_would_change_the_result() -> None:
    lora = PluginSpec(LoRA, layers=["out"], options={"rank": 2})
    for first in (PluginSpec(Offset, layers=["out"]), PluginSpec(Scaled, layers=["out"])):
        group = attach(toy_family(), {"first": first, "style": lora})
        kind = first.plugin.__name__
        with pytest.raises(
            ValueError, match=f"plugins.style cannot be folded into 'denoiser.out', because {kind} works"
        ):
            group.fuse()
    with pytest.raises(ValueError, match="there is no plugin that can be folded"):
        attach(toy_family(), {"p": PluginSpec(Offset, layers=["out"])}).fuse()
    branch = PluginSpec(LoRA, layers=["out"], options={"rank": 2}, branch="negative")
    with pytest.raises(ValueError, match="there is no plugin that can be folded"):
        attach(toy_family(), {"p": branch}).fuse()


def test_a_plugin_behind_a_fused_one_keeps_working() -> None:
    family, inputs = toy_family(), toy_inputs()
    specs = {
        "style": PluginSpec(LoRA, layers=["out"], options={"rank": 2}),
        "offset": PluginSpec(Offset, layers=["out"], options={"start": 1.0}),
    }
    group = attach(family, specs)
    shake(group)
    live = family.denoiser(*inputs)
    group.fuse()
    assert torch.allclose(family.denoiser(*inputs), live, atol=1e-5)


def test_a_branch_works_on_its_rows() -> None:
    family, inputs = toy_family(), toy_inputs(batch=4)
    plain = family.denoiser(*inputs)
    spec = PluginSpec(LoRA, layers=["blocks", "conv_in"], options={"rank": 2}, branch="negative")
    group = attach(family, {"style": spec})
    shake(group)
    group.feed(PluginInputs(branches={"negative": slice(0, 2), "positive": slice(2, 4)}))
    changed = family.denoiser(*inputs)
    assert torch.allclose(changed[2:], plain[2:], atol=1e-6)
    assert not torch.allclose(changed[:2], plain[:2], atol=1e-3)
