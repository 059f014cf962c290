import pytest
import torch
from torch import Generator, Tensor

from hcpdiff.diffusion import noise
from hcpdiff.diffusion.process import DDPM

KINDS = {
    "gaussian": (noise.gaussian, {}),
    "offset": (noise.offset, {"strength": 0.3}),
    "pyramid": (noise.pyramid, {"levels": 5, "discount": 0.8}),
}


def draw(kind: str, latents: Tensor, seed: int = 0) -> Tensor:
    function, settings = KINDS[kind]
    return function(latents, Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_the_shape_and_dtype_of_the_latents_and_repeats_with_its_seed(kind: str):
    latents = torch.zeros(2, 4, 9, 16, dtype=torch.bfloat16)
    drawn = draw(kind, latents)
    assert (drawn.shape, drawn.dtype) == (latents.shape, latents.dtype)
    assert torch.equal(drawn, draw(kind, latents))
    assert not torch.equal(drawn, draw(kind, latents, seed=1))
    assert not latents.any()


def test_offset_shifts_each_image_and_channel_by_its_strength():
    drawn = draw("offset", torch.zeros(64, 16, 32, 32))
    means = drawn.mean((2, 3))
    assert means.std().item() == pytest.approx((0.3**2 + 1 / 1024) ** 0.5, rel=0.1)  # 1024 values: 2 % standard error
    assert (drawn - means[..., None, None]).std().item() == pytest.approx(1, rel=0.01)


def test_pyramid_adds_coarse_noise_and_keeps_unit_variance_per_image():
    latents = torch.zeros(8, 4, 64, 64)
    drawn = draw("pyramid", latents)
    torch.testing.assert_close(drawn.flatten(1).std(1), torch.ones(8), atol=1e-5, rtol=0)  # float32
    coarse = torch.nn.functional.avg_pool2d(drawn, 16)
    assert coarse.std() > 3 * torch.nn.functional.avg_pool2d(draw("gaussian", latents), 16).std()


def test_pyramid_ends_where_latents_are_too_small():
    tiny = torch.zeros(1, 4, 3, 5)
    assert noise.pyramid(tiny, Generator().manual_seed(0), levels=50, discount=1.0).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_that_is_added_is_the_noise_that_is_the_target(kind: str):
    process, t = DDPM("epsilon"), torch.tensor([400.0])
    latents = torch.rand(1, 4, 16, 16, dtype=torch.float64)
    drawn = draw(kind, latents)
    alpha, sigma = process.coefficients(t)
    added = (process.add_noise(latents, drawn, t) - alpha * latents) / sigma
    torch.testing.assert_close(added, process.target(latents, drawn, t), atol=1e-12, rtol=0)  # fp64


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (noise.offset, {"strength": 0}),
        (noise.pyramid, {"levels": 1}),
        (noise.pyramid, {"discount": 0.0}),
        (noise.pyramid, {"discount": 1.5}),
    ],
)
def test_a_wrong_setting_is_named(function, settings: dict):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: "):
        function(torch.zeros(1, 4, 8, 8), Generator(), **settings)
