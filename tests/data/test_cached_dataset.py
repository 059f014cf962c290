from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hcpdiff.data import CaptionDropout, Dataset, FixedBucket, FolderSource, RatioBucket, TagShuffle
from hcpdiff.data.cache.latents import CachedLatents
from hcpdiff.data.cache.normals import normals
from hcpdiff.types import Prompt

Make = Callable[..., Dataset]


def test_cached_batches_hold_the_latents_of_the_same_images(make: Make, encode_image) -> None:
    cached, live = make(cache_latents="memory"), make()
    cached.store_latents(encode_image, "vae")
    for number in range(7):
        batch, expected = cached.batch(number), live.batch(number)
        assert batch.encoded
        assert (batch.keys, batch.prompts, batch.sizes) == (expected.keys, expected.prompts, expected.sizes)
        assert batch.images.shape == (len(expected), 4, 4, 4)
        noise = (batch.images - encode_image(expected.images)[0]) / 0.5
        assert noise.abs().max() < 5  # of a normal distribution
        assert noise.std() > 0.7


def test_each_showing_draws_anew_and_each_run_alike(make: Make, encode_image) -> None:
    one, same = make(cache_latents="memory"), make(cache_latents="memory")
    one.store_latents(encode_image, "vae")
    same.store_latents(encode_image, "vae")
    drawn: dict[str, list] = {}
    for number in range(2 * one.batches_per_epoch):
        batch = one.batch(number)
        assert torch.equal(batch.images, same.batch(number).images)
        for key, latents in zip(batch.keys, batch.images, strict=True):
            drawn.setdefault(key, []).append(latents)
    assert all(len(pair) == 2 and not torch.equal(*pair) for pair in drawn.values())


def test_the_disk_is_read_by_the_next_run_and_only_changes_are_computed(
    make: Make, images: Path, tmp_path: Path, encode_image
) -> None:
    def computed(fingerprint: str = "vae", **options: object) -> int:
        before = encode_image.seen
        dataset = make(cache_latents="disk", cache_dir=tmp_path / "cache", **options)
        dataset.store_latents(encode_image, fingerprint)
        return encode_image.seen - before

    assert computed() == 11
    assert computed() == 0
    (images / "01.png").rename(images / "renamed.png")
    assert computed() == 0
    Image.new("RGB", (40, 48), "red").save(images / "02.png")
    assert computed() == 1
    assert computed(bucket=FixedBucket(24)) == 11
    assert computed(fingerprint="another vae") == 11
    assert 0 < computed(crop="random", variants=2) < 22  # square images have one crop only, which is there
    assert computed(flip=1.0) == 11
    assert computed() == 0


def test_each_resolution_of_an_image_has_latents_of_its_own(make: Make, encode_image) -> None:
    options = {"bucket": [FixedBucket(32), FixedBucket(24)]}
    cached, live = make(cache_latents="memory", **options), make(**options)
    cached.store_latents(encode_image, "vae")
    assert encode_image.seen == 22
    for number in range(cached.batches_per_epoch):
        batch, expected = cached.batch(number), live.batch(number)
        assert (batch.keys, batch.sizes) == (expected.keys, expected.sizes)
        assert batch.images.shape[-1] == expected.images.shape[-1] // 8


def test_condition_images_become_latents_if_that_is_asked_for(
    make: Make, images: Path, tmp_path: Path, encode_image
) -> None:
    for name in FolderSource(images).files:
        (tmp_path / "control" / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(images / name) as image:
            image.save(tmp_path / "control" / name)
    dataset = make(FolderSource(images, control_images=tmp_path / "control"))
    latents = CachedLatents(dataset.samples, tmp_path / "cache", "vae", encoded_inputs=["control_image"])
    assert latents.fill(encode_image) == 11
    batch, expected = latents.batch(0, range(4)), [dataset.samples.sample(0, n) for n in range(4)]
    control = torch.stack([sample.image for sample in expected])  # the same picture as the condition
    assert torch.equal(batch.inputs["control_image_latents"], encode_image(control)[0])
    images_instead = CachedLatents(dataset.samples, tmp_path / "cache", "vae")
    assert images_instead.fill(encode_image) == 11
    assert images_instead.batch(0, range(4)).inputs["control_image"].shape == (4, 3, 32, 32)


def test_encoding_a_condition_image_that_no_image_has_is_an_error(make: Make, images: Path, encode_image) -> None:
    options = {"cache_latents": "memory", "encoded_inputs": ["controlimage"]}
    with pytest.raises(
        ValueError, match=r"data\.main\.encoded_inputs: the images have no 'controlimage'; they have none"
    ):
        make(**options).store_latents(encode_image, "vae")
    with pytest.raises(ValueError, match=r"no 'controlimage'; they have control_image"):
        make(FolderSource(images, control_images=images), **options).store_latents(encode_image, "vae")
    assert encode_image.seen == 0


def test_two_images_of_one_content_are_computed_once(make: Make, images: Path, encode_image) -> None:
    (images / "copy.png").write_bytes((images / "01.png").read_bytes())
    dataset = make(cache_latents="memory")
    dataset.store_latents(encode_image, "vae")
    assert encode_image.seen == 11
    assert len(dataset.latents) == 12


def test_the_noise_of_latents_is_normal_and_independent() -> None:
    drawn = normals(list(range(50)), 4096)
    # Deviations allowed: five standard errors of so many numbers.
    assert drawn.mean().abs() < 5 / 4096**0.5 / 50**0.5
    assert (drawn.var() - 1).abs() < 5 * (2 / (50 * 4096)) ** 0.5
    for value in (-2, -1, 0, 1, 2):
        below = float(torch.special.ndtr(torch.tensor(float(value))))
        assert abs((drawn < value).float().mean() - below) < 5 * (below * (1 - below) / (50 * 4096)) ** 0.5
    alike = torch.corrcoef(drawn) - torch.eye(50)
    assert alike.abs().max() < 6 / 4096**0.5
    assert torch.equal(normals([7, 3], 4095, torch.bfloat16)[1], normals([3], 4096, torch.bfloat16)[0, :4095])


def test_equal_names_in_two_folders_do_not_collide(make: Make, tmp_path: Path, encode_image) -> None:
    for folder, colour in (("x", "white"), ("y", "black")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32), colour).save(tmp_path / folder / "a.png")
    dataset = make([FolderSource(tmp_path / "x"), FolderSource(tmp_path / "y")], cache_latents="memory")
    dataset.store_latents(lambda images: (encode_image(images)[0], torch.zeros(len(images), 4, 4, 4)), "vae")
    batch = dataset.batch(0)
    assert {key: latents.mean().item() for key, latents in zip(batch.keys, batch.images, strict=True)} == {
        "0/a.png": 1,
        "1/a.png": -1,
    }


def test_masks_and_control_images_come_from_the_cache_too(
    make: Make, images: Path, tmp_path: Path, encode_image
) -> None:
    for name in FolderSource(images).files:
        for folder in ("control", "masks"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(images / name) as image:
                image.convert("RGB" if folder == "control" else "L").save(tmp_path / folder / name)
    source = FolderSource(images, control_images=tmp_path / "control", loss_masks=tmp_path / "masks")
    cached, live = make(source, cache_latents="memory"), make(source)
    cached.store_latents(encode_image, "vae", workers=1)
    for number in range(3):
        batch, expected = cached.batch(number), live.batch(number)
        assert torch.equal(batch.inputs["control_image"], expected.inputs["control_image"])
        assert batch.loss_mask is not None
        assert expected.loss_mask is not None
        small = torch.nn.functional.avg_pool2d(expected.loss_mask, 8)
        assert torch.allclose(batch.loss_mask, small, atol=1e-6)  # the order of sums may differ


def test_variants_are_all_cached_and_take_turns(make: Make, encode_image) -> None:
    dataset = make(cache_latents="memory", crop="random", flip=0.5, variants=3, bucket=RatioBucket(1024, num_buckets=2))
    dataset.store_latents(encode_image, "vae")
    live = make(crop="random", flip=0.5, variants=3, bucket=RatioBucket(1024, num_buckets=2))
    assert [dataset.batch(n).sizes for n in range(9)] == [live.batch(n).sizes for n in range(9)]
    assert 11 < encode_image.seen <= 33


def test_broken_images_are_replaced_by_the_same_ones_as_without_a_cache(make: Make, images: Path, encode_image) -> None:
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])
    cached, live = make(cache_latents="memory"), make()
    cached.store_latents(encode_image, "vae")
    assert [file.key for file in cached.bad] == ["01.png"]
    assert [cached.batch(n).keys for n in range(6)] == [live.batch(n).keys for n in range(6)]


def test_transforms_are_part_of_the_key(make: Make, tmp_path: Path, encode_image) -> None:
    def darken(image):
        return {"image": image // 2}

    options = {"transforms": darken, "variants": 1}
    make(cache_latents="memory", **options).store_latents(encode_image, "vae")
    with pytest.raises(ValueError, match=r"data\.main\.transforms: a cache on disk cannot tell when they change"):
        make(cache_latents="disk", cache_dir=tmp_path, **options).store_latents(encode_image, "vae")


def test_latents_of_prompts_alone_are_refused(make: Make, encode_image) -> None:
    class Prompts(FolderSource):
        has_images = False

    dataset = make()
    dataset.samples.sources = [Prompts(dataset.sources[0].path)]
    with pytest.raises(ValueError, match=r"data\.main\.cache_latents: a source of prompts alone has no images"):
        dataset.store_latents(encode_image, "vae")


def test_conditioning_comes_from_the_cache(make: Make, tmp_path: Path, encode_prompt) -> None:
    options = {"template": ["{a} {caption}"], "word_names": {"a": ["good", "bad"]}, "prompt_dropout": 0.3}
    dataset = make(cache_text="disk", cache_dir=tmp_path, **options)
    assert dataset.store_text(encode_prompt, "text encoders", negatives=True)
    assert encode_prompt.seen == 11 + 11 + 1
    seen = set()
    for number in range(12):
        batch = dataset.batch(number)
        for got, texts in (
            (batch.positive, [prompt.positive for prompt in batch.prompts]),
            (batch.negative, [prompt.negative for prompt in batch.prompts]),
        ):
            expected = encode_prompt(texts)
            seen.update(texts)
            assert torch.equal(got.tokens, expected.tokens)
            assert torch.equal(got.mask, expected.mask)
            assert torch.equal(got.extras["length"], expected.extras["length"])
            assert got.pooled is None
    assert len(seen) == 23
    before = encode_prompt.seen
    make(cache_text="disk", cache_dir=tmp_path, **options).store_text(encode_prompt, "text encoders", negatives=True)
    assert encode_prompt.seen == before
    make(cache_text="disk", cache_dir=tmp_path, **options).store_text(encode_prompt, "others", negatives=True)
    assert encode_prompt.seen == before + 23


def test_one_prompt_for_all_is_stored_and_kept_once(make: Make, encode_prompt) -> None:
    dataset = make(cache_text="memory", template=["a {pt1}"], word_names={"pt1": "sks"})
    dataset.store_text(encode_prompt, "text encoders")
    positive = dataset.batch(0).positive
    assert positive is not None
    assert positive.tokens.shape == (4, 20, 1)
    assert positive.tokens.stride(0) == 0
    assert dataset.batch(0).negative is None


def test_endless_prompts_are_detected_and_encoded_as_they_come(make: Make, images: Path, encode_prompt) -> None:
    for path in images.rglob("*.txt"):
        path.write_text("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")
    dataset = make(cache_text="memory", caption_transforms=[TagShuffle()])
    assert not dataset.store_text(encode_prompt, "text encoders")
    assert encode_prompt.seen == 0
    assert dataset.batch(0).positive is None
    assert "data.main.cache_text: there are ever new prompts, so they are encoded as they come" in dataset.lines


def test_prompts_that_are_a_few_are_all_cached(make: Make, encode_prompt) -> None:
    finite = make(cache_text="memory", caption_transforms=[CaptionDropout(0.5)])
    assert finite.store_text(encode_prompt, "text encoders")
    assert finite.samples.all_prompts() >= {Prompt(""), Prompt("picture 1, red, blue")}
