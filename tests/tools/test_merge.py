"""Models and adapters merged on disk, against the live model and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import hcpdiff
from hcpdiff.plugins import weights
from hcpdiff.tools.merge import merge
from hcpdiff.tools.model_files import open_model
from hcpdiff.tools.settings import MergeAdapter, MergePart, MergeSettings
from tests.tools.tiny_models import FAMILIES, family, lora, model, other


def state(name: str, path: Path) -> dict[str, Tensor]:
    return family(name, path).state_dict()


def settings(base: Path, out: Path, **rest: Any) -> MergeSettings:
    return MergeSettings(base=str(base), out=str(out), **rest)


@pytest.mark.parametrize("layout", ["folder", "file.safetensors"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_merged_lora_is_what_the_live_model_becomes(name: str, layout: str, tmp_path: Path) -> None:
    path, base = lora(name, tmp_path / "style.safetensors"), model(name)
    out = tmp_path / layout.replace("file", "merged")
    adapters = {"style": MergeAdapter(path=str(path), strength=0.7)}
    merged = merge(settings(base / layout, out, adapters=adapters))
    live = family(name, base / "folder")
    before = {key: tensor.clone() for key, tensor in live.state_dict().items()}
    weights.merge(live, path, strength=0.7)
    wanted, options = live.state_dict(), {} if layout == "folder" else {"configs": base / "folder"}
    found = family(name, out, **options).state_dict()
    assert found.keys() == wanted.keys()
    changed = {key for key in wanted if not torch.equal(wanted[key], before[key])}
    assert {key for key in found if not torch.equal(found[key], before[key])} == changed
    assert len(merged.changed) == len(changed)
    for key in changed:  # float32, in another order of multiplication
        torch.testing.assert_close(found[key], wanted[key], rtol=1e-5, atol=1e-6)


def test_several_parts_do_not_compound(tmp_path: Path) -> None:
    base, one = model("sd1") / "folder", other("sd1", tmp_path / "one")
    two = other("sd1", tmp_path / "two.safetensors", lambda live: [p.mul_(2) for p in live.parameters()])
    parts = {"one": MergePart(path=str(one), strength=0.3), "two": MergePart(path=str(two), strength=0.5)}
    merge(settings(base, tmp_path / "a", strength=0.4, parts=parts))
    merge(settings(base, tmp_path / "b", parts=parts))
    weights_of = [state("sd1", path) for path in (base, one, tmp_path / "a", tmp_path / "b")]
    for key, tensor in weights_of[0].items():
        w, w1, a, b = (each[key] for each in weights_of)
        if tensor.is_floating_point():
            torch.testing.assert_close(a, 0.4 * w + 0.3 * w1 + 0.5 * 2 * w, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(b, 0.2 * w + 0.3 * w1 + 0.5 * 2 * w, rtol=1e-5, atol=1e-6)


def test_a_base_whose_strengths_do_not_add_up_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {"one": MergePart(path=str(other("sd1", tmp_path / "one")), strength=0.3, layers=["denoiser.conv_in"])}
    merge(settings(model("sd1") / "folder", tmp_path / "a", parts=parts))
    assert "add up" not in caplog.text
    merge(settings(model("sd1") / "folder", tmp_path / "b", strength=1.0, parts=parts))
    assert "do not add up to 1 for 1 layers: denoiser.conv_in" in caplog.text


def test_layers_that_are_not_selected_stay_bit_by_bit(tmp_path: Path) -> None:
    base, one = model("sd1") / "folder", other("sd1", tmp_path / "one")
    layers = {r"re:denoiser\..*attn1.*": 0.5, "denoiser.mid_block": 0.25}
    parts = {"one": MergePart(path=str(one), strength=0.0, layers=layers)}
    merged = merge(settings(base, tmp_path / "out", parts=parts))
    w, w1, found = (state("sd1", path) for path in (base, one, tmp_path / "out"))
    for key in w:
        if key.startswith("denoiser.mid_block."):
            torch.testing.assert_close(found[key], 0.75 * w[key] + 0.25 * w1[key])
        elif key.startswith("denoiser.") and "attn1" in key:
            torch.testing.assert_close(found[key], 0.5 * w[key] + 0.5 * w1[key])
        else:
            assert torch.equal(found[key], w[key])
    assert all("attn1" in layer or "mid_block" in layer for layer in merged.changed)


def test_layers_of_an_adapter_have_strengths_of_their_own(tmp_path: Path) -> None:
    base, path = model("sd1") / "folder", lora("sd1", tmp_path / "style.safetensors")
    chosen: dict[str, Any] = {"out": ["re:.*attn1.*"], "half": {"re:.*attn1.*": 0.5, "text_encoders": 0.0}}
    for out, layers in chosen.items():
        adapters = {"style": MergeAdapter(path=str(path), layers=layers)}
        merge(settings(base, tmp_path / out, adapters=adapters))
    merge(settings(base, tmp_path / "all", adapters={"style": MergeAdapter(path=str(path))}))
    w, whole, only, half = (state("sd1", p) for p in (base, *(tmp_path / n for n in ("all", "out", "half"))))
    for key in w:
        change = whole[key] - w[key]
        torch.testing.assert_close(only[key], w[key] + change * ("attn1" in key), rtol=1e-5, atol=1e-6)
        factor = 0.0 if key.startswith("text") else 0.5 if "attn1" in key else 1.0
        torch.testing.assert_close(half[key], w[key] + factor * change, rtol=1e-5, atol=1e-6)


def test_the_weights_of_one_part_are_mixed_into_it(tmp_path: Path) -> None:
    base, one = model("sd1") / "folder", other("sd1", tmp_path / "one")
    for path in (one / "unet", one / "unet" / "diffusion_pytorch_model.safetensors"):
        out = tmp_path / f"out-{path.stem}"
        merged = merge(settings(base, out, parts={"unet": MergePart(path=str(path), strength=1.0)}))
        w, w1, found = (state("sd1", p) for p in (base, one, out))
        assert all(torch.equal(found[key], (w1 if key.startswith("denoiser.") else w)[key]) for key in w)
        assert all(layer.startswith("denoiser.") for layer in merged.changed)


def test_a_dtype_is_that_of_all_weights_and_of_the_configs(tmp_path: Path) -> None:
    path, base = lora("sdxl", tmp_path / "style.safetensors"), model("sdxl")
    adapters = {"style": MergeAdapter(path=str(path))}
    for layout, out in (("folder", tmp_path / "out"), ("file.safetensors", tmp_path / "out.safetensors")):
        merge(settings(base / layout, out, adapters=adapters, dtype="bfloat16"))
        files = [out] if out.is_file() else out.glob("*/*.safetensors")
        found = [tensor for file in files for tensor in load_file(file).values()]
        assert {tensor.dtype for tensor in found if tensor.is_floating_point()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())["dtype"] == "bfloat16"


def test_files_say_what_they_were_merged_from(tmp_path: Path) -> None:
    path, base = lora("sd1", tmp_path / "style.safetensors"), tmp_path / "base.safetensors"
    header = {"format": "pt", "modelspec.title": "mine", "modelspec.hash_sha256": "0x12"}
    save_file(load_file(model("sd1") / "file.safetensors"), base, header)
    out = tmp_path / "out.safetensors"
    merge(settings(base, out, adapters={"style": MergeAdapter(path=str(path))}))
    with safe_open(out, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "modelspec.title": "mine",
            "modelspec.merged_from": "base.safetensors, style.safetensors",
            "hcpdiff.version": hcpdiff.__version__,
        }


def test_keys_of_a_file_that_mean_nothing_stay(tmp_path: Path) -> None:
    path, base = lora("sd1", tmp_path / "style.safetensors"), tmp_path / "base.safetensors"
    more = {"model_ema.decay": torch.tensor(0.5), "betas": torch.arange(3)}
    save_file(load_file(model("sd1") / "file.safetensors") | more, base, {"format": "pt"})
    merge(settings(base, tmp_path / "out.safetensors", adapters={"s": MergeAdapter(path=str(path))}, dtype="float16"))
    found = load_file(tmp_path / "out.safetensors")
    assert found["model_ema.decay"].dtype == torch.float16
    assert torch.equal(found["betas"], more["betas"])


def test_a_part_in_several_files_is_read_and_written(tmp_path: Path) -> None:
    path, base = lora("sd1", tmp_path / "style.safetensors"), model("sd1") / "folder"
    adapters = {"style": MergeAdapter(path=str(path))}
    merge(settings(base, tmp_path / "whole", adapters=adapters))
    merge(settings(base, tmp_path / "shards", adapters=adapters, shard_size=60e3))
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 1
    again = {"none": MergeAdapter(path=str(path), strength=1e-30)}
    merge(settings(tmp_path / "shards", tmp_path / "again", adapters=again))
    wanted = state("sd1", tmp_path / "whole")
    for found in ("shards", "again"):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in state("sd1", tmp_path / found).items())


def test_a_ckpt_is_merged_into_a_safetensors_file(tmp_path: Path) -> None:
    path, base = lora("sd1", tmp_path / "style.safetensors"), tmp_path / "base.ckpt"
    torch.save({"state_dict": load_file(model("sd1") / "file.safetensors")}, base)
    adapters = {"style": MergeAdapter(path=str(path))}
    merge(settings(base, tmp_path / "a.safetensors", adapters=adapters))
    merge(settings(model("sd1") / "file.safetensors", tmp_path / "b.safetensors", adapters=adapters))
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def mistake(tmp_path: Path, name: str = "sd1", **change: Any) -> str:
    """What merging a LoRA says with these settings; nothing may be left of it."""
    path = tmp_path / "style.safetensors"
    given = {
        "base": str(model(name) / "folder"),
        "out": str(tmp_path / "out"),
        "adapters": {} if "parts" in change else {"style": MergeAdapter(path=str(path))},
        **change,
    }
    before = set(tmp_path.iterdir())
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        merge(MergeSettings(**given))
    assert set(tmp_path.iterdir()) == before
    return str(caught.value)


def test_what_cannot_be_merged_is_told(tmp_path: Path) -> None:
    path = str(lora("sd1", tmp_path / "style.safetensors"))
    sdxl = str(lora("sdxl", tmp_path / "sdxl.safetensors"))
    folder, file = model("sd1") / "folder", model("sd1") / "file.safetensors"
    assert "out: " in (text := mistake(tmp_path, out=str(folder)))
    assert text.endswith("is the base; name another")
    assert "is there already and is not overwritten" in mistake(tmp_path, out=str(tmp_path))
    assert "of a folder a folder is made" in mistake(tmp_path, out=str(tmp_path / "x.safetensors"))
    assert "let its name end in .safetensors" in mistake(tmp_path, base=str(file))
    assert "dtype: 'int8' is not written; use float32, bfloat16, float16" in mistake(tmp_path, dtype="int8")
    text = mistake(tmp_path, adapters={"x": MergeAdapter(path=sdxl)})
    assert text.startswith("merge.adapters.x: ")
    assert "mean no layer of sd" in text
    layers = ["re:.*atn1.*"]
    text = mistake(tmp_path, adapters={"x": MergeAdapter(path=path, layers=layers)})
    assert "merge.adapters.x.layers[0]: 're:.*atn1.*' matches none of the" in text
    text = mistake(tmp_path, adapters={"x": MergeAdapter(path=path, layers={"denoiser.conv_im": 1.0})})
    assert "merge.adapters.x.layers.denoiser.conv_im: " in text
    assert "close names: denoiser.conv_in" in text
    text = mistake(tmp_path, adapters={"x": MergeAdapter(path=path, layers=["pre_hook:denoiser"])})
    assert "'pre_hook:' does not fit here" in text
    text = mistake(tmp_path, parts={"x": MergePart(path=str(model("sdxl") / "folder"), strength=0.5)})
    assert "this is a model of sdxl, and the base is one of sd" in text
    text = mistake(tmp_path, parts={"x": MergePart(path=path, strength=0.5)})
    assert "this is an adapter such as a LoRA" in text
    assert "merge.base: no folder at" in mistake(tmp_path, base=str(tmp_path / "nowhere"))


def test_layers_that_the_base_does_not_have_are_listed(tmp_path: Path) -> None:
    save_file(
        {
            "lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 8, 1, 1),
            "lora_unet_down_blocks_7_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 2, 1, 1),
        },
        tmp_path / "style.safetensors",
    )
    text = mistake(tmp_path)
    assert "merge.adapters.style: " in text
    assert "the base has no such layer for 1 of 1: denoiser.down_blocks.7.attentions.0.proj_in" in text


def test_shapes_that_differ_are_told_and_nothing_remains(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": torch.zeros(2, 9, 1, 1), f"{name}.lora_up.weight": torch.zeros(8, 2, 1, 1)}
    save_file(tensors, tmp_path / "style.safetensors")
    text = mistake(tmp_path)
    assert "merge.adapters.style: denoiser.down_blocks.0.attentions.0.proj_in.weight has shape (8, 8, 1, 1)" in text


def test_values_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    lora("sd1", tmp_path / "style.safetensors")
    for values, dtype in ((1e30, "float16"), (float("nan"), None)):
        state = load_file(tmp_path / "style.safetensors")
        key = next(key for key in state if key.endswith("lora_up.weight"))
        save_file(state | {key: torch.full_like(state[key], values)}, tmp_path / "style.safetensors", {"format": "pt"})
        assert "would have values that are no numbers in float" in mistake(tmp_path, dtype=dtype)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "a merge would change nothing"),
        ({"strength": 0.5, "adapters": {"x": MergeAdapter(path="x")}}, "there are none; remove it"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergeSettings(base="x", out="y", **wrong)
    with pytest.raises(ValueError, match="0 would change nothing"):
        MergePart(path="x", strength=0, layers=["a"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_and_a_folder_have_the_same_tensors(name: str) -> None:
    root = model(name)
    file, folder = open_model(root / "file.safetensors"), open_model(root / "folder")
    assert file.family == folder.family
    assert set(file.places) <= set(folder.places)
    for key in file.places:
        assert file.entry(key) == folder.entry(key)
        assert torch.equal(file.get(key), folder.get(key))
