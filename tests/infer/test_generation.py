from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.diffusion import samplers
from hcpdiff.diffusion.guidance import norm_kept
from hcpdiff.infer.generation import Picture, generate
from hcpdiff.infer.request import Request
from hcpdiff.models.sd3.family import SD3
from hcpdiff.plugins import LoRA, PluginSpec, attach
from hcpdiff.plugins.group import PluginGroup
from hcpdiff.types import Conditioning, Prompt
from tests.train.runs import family as tiny_family
from tests.train.runs import lora

ROUNDING = 1  # of 255: other batch sizes sum in another order


@pytest.fixture(scope="module")
def family() -> SD3:
    return tiny_family()


def request(**changes: Any) -> Request:
    return Request(
        **{"prompts": ["a red star", "b"], "size": (24, 28), "steps": 3, "guidance": 3.0, "seed": 5} | changes
    )


def pixels(pictures: Sequence[Picture]) -> list[np.ndarray]:
    return [np.asarray(picture.image).astype(int) for picture in pictures]


def noticed(family: SD3, **changes: Any) -> bool:
    """Whether the first picture of a request becomes another with these changes."""
    first, second = (pixels(generate(family, r))[0] for r in (request(), request(**changes)))
    return bool(np.abs(first - second).max() > ROUNDING)


def shaken(group: PluginGroup) -> PluginGroup:
    """The plugins with random weights, so that they do something."""
    with torch.no_grad():
        for p in group.members.parameters():
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return group


@pytest.mark.parametrize("sampler", [samplers.euler, samplers.euler_ancestral, samplers.dpmpp_2m_sde, samplers.lcm])
def test_a_seed_gives_the_same_picture_in_any_batch(family: SD3, sampler: Any) -> None:
    together = generate(family, request(images_per_prompt=3, sampler=sampler))
    assert [picture.seed for picture in together] == [5, 6, 7, 5, 6, 7]
    assert [picture.prompt.positive for picture in together] == ["a red star"] * 3 + ["b"] * 3
    apart = generate(family, request(images_per_prompt=3, sampler=sampler, batch_size=1))
    alone = generate(family, request(prompts=["b"], seed=7, sampler=sampler))
    for first, second in zip(pixels([*together, together[-1]]), pixels([*apart, *alone]), strict=True):
        assert np.abs(first - second).max() <= ROUNDING
    assert np.abs(pixels(together)[0] - pixels(together)[1]).max() > ROUNDING


def test_the_same_request_gives_the_same_bits(family: SD3) -> None:
    first, second = (generate(family, request(sampler=samplers.euler_ancestral)) for _ in range(2))
    assert [p.image.tobytes() for p in first] == [p.image.tobytes() for p in second]


def test_prompt_negative_seed_guidance_steps_and_spacing_all_matter(family: SD3) -> None:
    changes: list[dict[str, Any]] = [
        {"prompts": ["b"]},
        {"negative": "dark"},
        {"prompts": [Prompt("a red star", "dark")]},
        {"seed": 6},
        {"guidance": 4.0},
        {"steps": 4},
        {"combine": norm_kept},
        {"spacing": lambda n, process, size: torch.linspace(1000, 100, n, dtype=torch.float64)},
    ]
    for change in changes:
        assert noticed(family, **change), change
    assert not noticed(family, batch_size=1)


def test_two_predictions_are_combined_as_the_request_says_or_else_the_model(
    family: SD3, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = pixels(generate(family, request(combine=norm_kept)))
    with pytest.raises(ValueError, match=r"^combine: at a guidance of 1 there is one prediction"):
        generate(family, request(combine=norm_kept, guidance=1))
    monkeypatch.setattr(SD3, "combine", staticmethod(norm_kept))
    assert pixels(generate(family, request()))[0].tolist() == told[0].tolist()


def test_a_request_without_guidance_takes_the_models_own(family: SD3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert family.default_guidance == 5
    assert (
        pixels(generate(family, request(guidance=None)))[0].tolist()
        == pixels(generate(family, request(guidance=5.0)))[0].tolist()
    )
    monkeypatch.setattr(SD3, "default_guidance", 1.0)
    assert (
        pixels(generate(family, request(guidance=None)))[0].tolist()
        == pixels(generate(family, request(guidance=1.0, negative="dark")))[0].tolist()
    )


def test_guidance_1_runs_one_branch_and_needs_no_negative(family: SD3, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = family.denoise

    def counting(noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        rows.append(len(noisy_latents))
        return original(noisy_latents, timesteps, conditioning)

    monkeypatch.setattr(family, "denoise", counting)
    one = generate(family, request(guidance=1))
    assert rows == [2, 2, 2]
    assert pixels(one)[0].tolist() == pixels(generate(family, request(guidance=1, negative="dark")))[0].tolist()
    rows.clear()
    generate(family, request())
    assert rows == [4, 4, 4]


def test_a_size_that_the_model_cannot_make_is_an_error_that_names_one_that_it_can(family: SD3) -> None:
    with pytest.raises(ValueError, match=r"size: \[24, 30\] does not divide by 4, as this model needs; use \[24, 32\]"):
        generate(family, request(size=(24, 30)))


def test_a_size_beyond_the_models_positions_is_an_error(family: SD3) -> None:
    assert family.latent.max_side == 48
    with pytest.raises(
        ValueError, match=r"size: \[24, 52\] is too large, as this model has positions for 48 pixels a side"
    ):
        generate(family, request(size=(24, 52)))


def test_a_control_image_that_nothing_reads_is_an_error(family: SD3, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outline.png")
    with pytest.raises(ValueError, match="control_image: no plugin of this run reads it; add one that does"):
        generate(family, request(control_image=str(tmp_path / "outline.png")))
    group = attach(family, {"style": lora()})
    with pytest.raises(ValueError, match="control_image: no plugin of this run reads it"):
        generate(family, request(control_image=str(tmp_path / "outline.png")), plugins=group)
    group.detach()


def test_pictures_have_their_size_as_height_and_width(family: SD3) -> None:
    assert generate(family, request(size=(24, 36)))[0].image.size == (36, 24)  # Pillow's is (width, height)


def test_strength_0_is_no_adapter_bit_for_bit_and_others_differ() -> None:
    family = tiny_family()
    without = [p.image.tobytes() for p in generate(family, request())]
    group = shaken(attach(family, {"style": lora(lr=None), "text": lora(on="text_encoders.clip_l", lr=None)}))
    seen = set()
    for strength in (0.0, 0.5, 1.0):
        group.set_strength("style", strength)
        group.set_strength("text", strength)
        pictures = [p.image.tobytes() for p in generate(family, request(), plugins=group)]
        assert (pictures == without) == (strength == 0)
        seen.add(pictures[0])
    assert len(seen) == 3


def test_a_plugin_of_a_branch_works_on_that_branch_alone() -> None:
    family = tiny_family()
    group = shaken(attach(family, {"bad": lora(lr=None, branch="negative")}))
    without = pixels(generate(tiny_family(), request()))[0]
    assert np.abs(pixels(generate(family, request(), plugins=group))[0] - without).max() > ROUNDING
    with pytest.raises(ValueError, match=r"plugins\.bad\.branch: 'negative' works in runs with guidance only"):
        generate(family, request(guidance=1), plugins=group)


def test_a_control_image_reaches_the_plugin_cut_to_the_picture(tmp_path: Any) -> None:
    from hcpdiff.plugins.controlnet import ControlNet

    family = tiny_family()
    group = shaken(attach(family, {"outline": PluginSpec(ControlNet, options={"num_layers": 1})}))
    with pytest.raises(ValueError, match=r"plugins\.outline: there is no control_image; give"):
        generate(family, request(), plugins=group)
    results = []
    for colour in ("black", "white"):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (100, 60), colour).save(path)
        results.append(pixels(generate(family, request(control_image=str(path)), plugins=group))[0])
        image = group.attachments[0].plugin.inputs.tensors["control_image"]
        assert image.shape[-2:] == (12, 14)  # latents of 24 x 28 pixels
    assert np.abs(results[0] - results[1]).max() > ROUNDING


def test_modes_are_as_they_were_and_finished_batches_are_told() -> None:
    family = tiny_family()
    group = attach(family, {"style": PluginSpec(LoRA, layers=["re:.*to_q"], options={"rank": 2, "dropout": 0.5})})
    family.train()
    group.train()
    told: list[int] = []
    made = generate(
        family, request(images_per_prompt=2, batch_size=3), plugins=group, on_pictures=lambda p: told.append(len(p))
    )
    assert told == [3, 1]
    assert len(made) == 4
    assert family.training
    assert group.training
    assert all(module.training for module in group.members.modules())


def test_a_request_without_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompts: the list is empty"):
        Request(prompts=[])
