"""The published models: names and shapes of every tensor, without weights, against diffusers' converters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hcpdiff.formats.single_file.layouts import LAYOUTS, Layout, recognise
from hcpdiff.formats.single_file.table import original_shapes
from hcpdiff.formats.tensor_files.opening import read_json
from hcpdiff.models.blank import on_meta

PARTS = [(layout, part) for layout in LAYOUTS.values() for part in layout.parts]


def stock(layout: Layout, part: str) -> nn.Module:
    """The class of diffusers or transformers by the shipped config, on the meta device."""
    import diffusers
    import transformers

    folder = layout.configs / part
    config = read_json(folder / "config.json")
    with on_meta():
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        kind = getattr(transformers, config["architectures"][0])
        return kind(kind.config_class.from_pretrained(folder))


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def converted(layout: Layout, part: str, module: Any, original: dict[str, Tensor]) -> dict[str, Tensor]:
    """What diffusers' own converter makes of the original tensors."""
    from diffusers.loaders import single_file_utils as utils

    prefix = layout.parts[part].prefixes[0]
    prefixed = {prefix + key: tensor for key, tensor in original.items()}
    if part == "unet":
        config: dict[str, Any] = dict(module.config)
        return utils.convert_ldm_unet_checkpoint(prefixed, config)
    if part == "vae":
        return utils.convert_ldm_vae_checkpoint(prefixed, dict(module.config))
    if part == "transformer":
        sd3 = layout.name.startswith("sd3")
        convert = (
            "convert_sd3_transformer_checkpoint_to_diffusers"
            if sd3
            else ("convert_flux_transformer_checkpoint_to_diffusers")
        )
        return getattr(utils, convert)(prefixed)
    if prefix.endswith(".model."):
        made = utils.convert_open_clip_checkpoint(module, prefixed, prefix=prefix)
        return made if hasattr(module, "text_model") else {k.removeprefix("text_model."): v for k, v in made.items()}
    return {key: original[source.key] for key, source in layout.parts[part].table(shapes_of(module)).items()}


@pytest.mark.parametrize(("layout", "part"), PARTS, ids=lambda value: getattr(value, "name", value))
def test_stock_converters_make_the_published_model_of_our_names(layout: Layout, part: str) -> None:
    module = stock(layout, part)
    expected = shapes_of(module)
    original = original_shapes(layout.parts[part].table(expected), expected)
    meta = {key: torch.empty(shape, device="meta") for key, shape in original.items()}
    made = {key: tuple(tensor.shape) for key, tensor in converted(layout, part, module, meta).items()}
    assert made == expected


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_every_published_model_is_recognised_by_its_keys(layout: Layout) -> None:
    shapes = {}
    for name, part in layout.parts.items():
        own = shapes_of(stock(layout, name))
        shapes |= {part.prefixes[0] + k: shape for k, shape in original_shapes(part.table(own), own).items()}
    assert recognise(shapes, "model.safetensors") is layout


# Counts of tensors of the published files' parts.
@pytest.mark.parametrize(
    ("name", "part", "count"),
    [
        ("sd1", "unet", 686),
        ("sd1", "vae", 248),
        ("sd1", "text_encoder", 196),
        ("sdxl", "unet", 1680),
        ("sdxl", "text_encoder_2", 388 + 1),
        ("flux-dev", "transformer", 780),
        ("flux-schnell", "transformer", 776),
        ("flux-dev", "vae", 244),
    ],
)
def test_a_part_has_as_many_tensors_as_published(name: str, part: str, count: int) -> None:
    layout = LAYOUTS[name]
    own = shapes_of(stock(layout, part))
    assert len(original_shapes(layout.parts[part].table(own), own)) == count
