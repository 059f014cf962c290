from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hcpdiff.plugins import ControlNet, LoRA, PluginGroup, PluginInputs, PluginSpec, weights
from hcpdiff.plugins.attach import attach
from tests.plugins.test_lora import shake
from tests.plugins.toys import Family, Mixer, Offset, Scaled, Skip, mmdit_args, mmdit_family, toy_family, toy_inputs

LORA = PluginSpec(LoRA, layers=[r"re:blocks\.\d\.to_[qk]", "conv_in"], options={"rank": 2})
TRUST = ("tests.plugins.toys",)


def plugged(spec: PluginSpec = LORA, seed: int = 0) -> PluginGroup:
    group = attach(toy_family(), {"style": spec}, seed=seed)
    shake(group)
    return group


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    "spec",
    [
        LORA,
        PluginSpec(LoRA, on="text_encoders.clip_l", layers=[""], options={"rank": 0.5, "alpha": 3, "bias": True}),
        PluginSpec(LoRA, on="", layers=["denoiser.out", "text_encoders"], options={"rank": 1}),
        PluginSpec(LoRA, layers=["out"], branch="negative", options={"rank": 2, "dropout": 0.5}),
        PluginSpec(Offset, layers=["", "out"]),
        PluginSpec(Skip, from_layers=["conv_in", "conv_in"], to_layers=["pre_hook:out", "blocks.0"]),
        PluginSpec(Mixer, from_layers=["pre_hook:"], to_layers=[r"re:blocks\.\d"]),
        PluginSpec(Scaled, layers=["out"]),
    ],
    ids=["lora", "alpha", "two parts", "branch", "single", "pair", "multi", "wrap"],
)
def test_a_file_alone_brings_the_plugin_back_bit_by_bit(spec: PluginSpec, tmp_path: Path) -> None:
    group = plugged(spec)
    path = tmp_path / "deep" / "style.safetensors"
    weights.save(group, "style", path)
    family = toy_family().eval()
    again = weights.attach_file(family, path, name="other", trust=TRUST)
    ours, theirs = group.plugin_state_dict("style"), again.plugin_state_dict("other")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    branches = {"negative": slice(0, 1), "positive": slice(1, 2)}
    for attached in (group, again):
        attached.feed(PluginInputs(branches=branches))
    group.family.eval()
    group.requires_grad_(False)  # torch takes other kernels for parameters that learn
    with torch.no_grad():
        assert torch.equal(family.denoiser(*toy_inputs()), group.family.denoiser(*toy_inputs()))
    assert again.param_groups() == []
    assert [p.name for p in path.parent.iterdir()] == ["style.safetensors"]
    into = attach(toy_family(), {"style": spec}, seed=1)
    report = weights.load_into(into, "style", path)
    assert (len(report.loaded), report.missing, report.unexpected) == (len(ours), [], [])
    assert all(torch.equal(tensor, ours[key]) for key, tensor in into.plugin_state_dict("style").items())


def test_a_controlnet_comes_back_from_its_file(tmp_path: Path) -> None:
    group = attach(mmdit_family(), {"pose": PluginSpec(ControlNet)})
    shake(group)
    weights.save(group, "pose", tmp_path / "pose.safetensors")
    family = mmdit_family()
    again = weights.attach_file(family, tmp_path / "pose.safetensors")
    for attached in (group, again):
        attached.feed(PluginInputs({"control_image": torch.ones(1, 4, 12, 8)}))
    assert torch.equal(family.denoiser(*mmdit_args(family)), group.family.denoiser(*mmdit_args(family)))


def test_keys_and_header_are_those_of_the_ecosystem(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    weights.save(plugged(), "style", path, {"hcpdiff.step": "7", "config": {"rank": 2}})
    keys = list(load_file(path))
    assert "transformer.blocks.0.to_q.lora_A.weight" in keys
    assert len(keys) == 14
    assert header(path)["format"] == "pt"
    assert header(path)["hcpdiff.step"] == "7"
    assert json.loads(header(path)["config"]) == {"rank": 2}
    assert json.loads(header(path)["lora_adapter_metadata"])["transformer.r"] == 2
    assert weights.load(path).metadata["hcpdiff.step"] == "7"
    spec = PluginSpec(LoRA, on="text_encoders", layers=["clip_l.0"], options={"rank": 2})
    weights.save(plugged(spec), "style", path)
    assert list(load_file(path)) == ["text_encoder.0.lora_A.weight", "text_encoder.0.lora_B.weight"]


@pytest.mark.parametrize(("alpha", "folded"), [(1.0, True), (4.0, True), (3.0, False)])
def test_alpha_is_folded_where_that_loses_nothing(alpha: float, folded: bool, tmp_path: Path) -> None:
    spec = PluginSpec(LoRA, layers=["out"], options={"rank": 2, "alpha": alpha})
    group = plugged(spec)
    (lora,) = group.plugins("style").values()
    path = tmp_path / "style.safetensors"
    weights.save(group, "style", path)
    stored = load_file(path)["transformer.out.lora_B.weight"]
    assert torch.equal(stored, lora.lora_B.weight * (alpha / 2 if folded else 1))
    peft_alpha = json.loads(header(path)["lora_adapter_metadata"])["transformer.alpha_pattern"]
    assert peft_alpha == {"^out": 2 if folded else alpha}
    other = attach(toy_family(), {"style": PluginSpec(LoRA, layers=["out"], options={"rank": 2, "alpha": 2.0})})
    weights.load_into(other, "style", path)
    ours, theirs = group.family.denoiser(*toy_inputs()), other.family.denoiser(*toy_inputs())
    assert torch.allclose(ours, theirs, atol=1e-6), "another alpha in the config does not change what a file does"


def test_one_error_lists_all_that_does_not_fit_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    weights.save(plugged(), "style", path)
    other = plugged(
        PluginSpec(
            LoRA,
            layers=["blocks.0.to_q", "blocks.1.to_q", "out"],
            options={"rank": 2},
            overrides={"blocks.1.to_q": {"rank": 3}},
        )
    )
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"plugins\.style") as error:
        weights.load_into(other, "style", path)
    text = str(error.value)
    assert "2 of 6 tensors fit" in text
    assert "2 missing: denoiser.out.lora_A.weight, denoiser.out.lora_B.weight" in text
    assert "10 unexpected: " in text
    assert "denoiser.blocks.1.to_q.lora_A.weight [2, 8] for [3, 8]" in text
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


def test_a_group_loads_all_or_nothing() -> None:
    group = plugged()
    state = dict(group.state_dict())
    state["style.more"] = state.pop("style.denoiser.conv_in.lora_A.weight")
    with pytest.raises(ValueError, match=r"plugins: 13 of 14 tensors fit; 1 missing: .*; 1 unexpected: style.more"):
        group.load_state_dict(state)


def write(path: Path, settings: dict[str, object]) -> None:
    save_file({"transformer.out.x": torch.zeros(1)}, path, {weights.HEADER: json.dumps(settings)})


def no_file(path: Path) -> None: ...


def no_safetensors(path: Path) -> None:
    path.write_bytes(b"something else entirely")


def no_header(path: Path) -> None:
    save_file({"transformer.out.x": torch.zeros(1)}, path)


def foreign_code(path: Path) -> None:
    write(path, {"class": "os:system", "scales": {}})


def alike_name(path: Path) -> None:
    write(path, {"class": "hcpdiff.pluginsx:Evil", "scales": {}})


def no_plugin(path: Path) -> None:
    write(path, {"class": "hcpdiff.plugins.lora:nn", "scales": {}})


def elsewhere(path: Path) -> None:
    write(path, {"class": "hcpdiff.plugins.lora:SinglePluginBlock", "scales": {}})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_file, "there is no such plugin file"),
        (no_safetensors, "no whole safetensors file"),
        (no_header, "its header does not say which plugin this is"),
        (foreign_code, r"its plugin is system of os; to run that package's code, trust 'os'"),
        (alike_name, "trust 'hcpdiff'"),
        (no_plugin, "hcpdiff.plugins.lora:nn is no plugin class"),
        (elsewhere, "hcpdiff.plugins.lora:SinglePluginBlock is no plugin class"),
    ],
)
def test_files_that_cannot_be_trusted_or_read_are_errors(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        weights.load(path)


def test_a_users_package_is_trusted_only_when_named(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    weights.save(plugged(PluginSpec(Offset, layers=["out"])), "style", path)
    with pytest.raises(ValueError, match="to run that package's code, trust 'tests'"):
        weights.load(path)
    assert weights.load(path, trust=["tests"]).spec.plugin is Offset


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "style.safetensors"
    weights.save(plugged(), "style", path)
    old = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"disk full: .*style\.safetensors"):
        weights.save(plugged(seed=1), "style", path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_several_files_attach_with_their_strengths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        weights.save(plugged(seed=ord(name)), "style", tmp_path / name)
    family = toy_family()
    plain = family.denoiser(*toy_inputs())
    group = weights.attach_files(family, {"a": (tmp_path / "a", 0.0), "b": (tmp_path / "b", 0.5)})
    alone = toy_family()
    weights.attach_file(alone, tmp_path / "b", strength=0.5)
    assert torch.allclose(family.denoiser(*toy_inputs()), alone.denoiser(*toy_inputs()), atol=1e-6)
    group.detach()
    assert torch.equal(family.denoiser(*toy_inputs()), plain)


def test_each_plugin_of_a_model_has_a_file_of_its_own_though_names_begin_alike(tmp_path: Path) -> None:
    group = attach(toy_family(), {"lora": LORA, "lora_proj": PluginSpec(LoRA, layers=["out"], options={"rank": 1})})
    before = group.family.state_dict()
    for name in ("lora", "lora_proj"):
        weights.save(group, name, tmp_path / name)
    assert {key.rpartition(".lora_")[0] for key in load_file(tmp_path / "lora_proj")} == {"transformer.out"}
    assert len(load_file(tmp_path / "lora")) == 2 * len(group.plugins("lora"))
    assert before.keys() == toy_family().state_dict().keys()


@pytest.mark.parametrize("from_file", [False, True])
def test_merging_makes_the_effect_part_of_the_base(from_file: bool, tmp_path: Path) -> None:
    group = plugged()
    weights.save(group, "style", tmp_path / "style")
    group.set_strength("style", 0.7)
    live = group.family.denoiser(*toy_inputs())
    group.set_strength("style", 1.0)
    family = toy_family() if from_file else group.family
    keys = list(family.state_dict())
    weights.merge(family, tmp_path / "style" if from_file else group, strength=0.7)
    assert torch.allclose(family.denoiser(*toy_inputs()), live, atol=1e-5)  # fp32 sums in another order
    assert not any(module._forward_hooks for module in family.modules())
    assert list(family.state_dict()) == keys


def test_what_is_no_change_of_weights_cannot_be_merged(tmp_path: Path) -> None:
    group = plugged(PluginSpec(Offset, layers=["out"]))
    before = group.family.denoiser(*toy_inputs())
    with pytest.raises(ValueError, match="Offset is more than a change of weights; keep it a plugin"):
        weights.merge(group.family, group)
    assert torch.equal(group.family.denoiser(*toy_inputs()), before)
    with pytest.raises(ValueError, match="strength 0 would change nothing"):
        weights.merge(group.family, group, strength=0)


def test_files_and_folders_in_the_home_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = attach(mmdit_family(), {"pose": PluginSpec(ControlNet)})
    shake(group)
    weights.save(group, "pose", tmp_path / "pose.safetensors")
    (attachment,) = group.attachments
    assert isinstance(attachment.plugin, ControlNet)
    attachment.plugin.save_pretrained(tmp_path / "pose")
    monkeypatch.setenv("HOME", str(tmp_path))
    state = group.plugin_state_dict("pose")
    from_file = weights.attach_file(mmdit_family(), "~/pose.safetensors").plugin_state_dict("plugin")
    spec = PluginSpec(ControlNet, options={"pretrained": "~/pose"})
    from_folder = attach(mmdit_family(), {"pose": spec}).plugin_state_dict("pose")
    for found in (from_file, from_folder):
        assert all(torch.equal(tensor, found[key]) for key, tensor in state.items())


def unet_family() -> Family:
    from tests.models.tiny_unet import tiny_sd

    pipeline = tiny_sd()
    family = Family(pipeline.unet, {"clip": pipeline.text_encoder}).requires_grad_(False)
    family.architecture = "sd"  # pyright: ignore[reportAttributeAccessIssue]
    return family


def test_files_from_before_unets_had_their_own_name_still_load(tmp_path: Path) -> None:
    spec = PluginSpec(LoRA, layers=["conv_in"], options={"rank": 2})
    group = attach(unet_family(), {"style": spec})
    shake(group)
    state = group.plugin_state_dict("style")
    settings = {"class": "hcpdiff.plugins.lora:LoRA", "scales": {}, "on": "denoiser", "layers": ["conv_in"]}
    header = {weights.HEADER: json.dumps(settings | {"options": {"rank": 2}}), "format": "pt"}
    old = {key.replace("denoiser.", "transformer."): tensor for key, tensor in state.items()}
    save_file(old, tmp_path / "old.safetensors", header)
    again = weights.attach_file(unet_family(), tmp_path / "old.safetensors")
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.plugin_state_dict("plugin").items())


def test_a_lora_of_another_program_needs_a_model_that_has_all_its_layers(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    tensors = {}
    for name in ("conv_in", "down_blocks_7_resnets_0_conv1", "down_blocks_8_resnets_0_conv1"):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.ones(2, 4, 3, 3)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.ones(8, 2, 1, 1)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="a LoRA of another program can be loaded into a model"):
        weights.load(path)
    family = unet_family()
    with pytest.raises(
        ValueError, match=r"has no such layer for 2 of 3: denoiser\.down_blocks\.7\.resnets\.0\.conv1, "
    ):
        weights.attach_file(family, path)
    assert not any(module._forward_hooks for module in family.modules())
    save_file({key: tensor for key, tensor in tensors.items() if "conv_in" in key}, path)
    group = weights.attach_file(family, path)
    (lora,) = group.plugins("plugin").values()
    assert (lora.rank, lora.alpha) == (2, 2.0), "without an alpha it is the rank"
