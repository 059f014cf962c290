from __future__ import annotations

import pickle
import typing
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import hcpdiff.data
from hcpdiff.data import Dataset, FixedBucket, FolderSource, HuggingFaceStream, RatioBucket, Record, TagShuffle
from hcpdiff.data.seeing.summary import summary_lines
from hcpdiff.types import Prompt

Make = Callable[..., Dataset]


def epoch_keys(dataset: Dataset, epoch: int = 0) -> list[str]:
    count = dataset.batches_per_epoch
    return [key for number in range(epoch * count, (epoch + 1) * count) for key in dataset.batch(number).keys]


def test_a_batch_is_what_its_type_says(make: Make) -> None:
    batch = make(template=["a {pt1}, {caption}"], word_names={"pt1": "sks"}).batch(0)
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert -1 <= batch.images.min() < -0.3 < 0.3 < batch.images.max() <= 1
    assert not batch.encoded
    number = int(batch.keys[0].removeprefix("sub/").removesuffix(".png"))
    assert batch.prompts[0] == Prompt(f"a sks, picture {number}, red, blue")
    assert batch.sizes[0].target == (32, 32)


@pytest.mark.parametrize("bucket", [FixedBucket(32), RatioBucket(32 * 32, num_buckets=4)])
@pytest.mark.parametrize("repeat", [1, 3])
def test_an_epoch_shows_every_image_exactly_repeat_times(make: Make, images: Path, bucket: object, repeat: int) -> None:
    dataset = make(FolderSource(images, repeat=repeat), bucket)
    names = FolderSource(images).files
    for epoch in range(2):
        assert Counter(epoch_keys(dataset, epoch)) == dict.fromkeys(names, repeat)
    assert epoch_keys(dataset, 0) != epoch_keys(dataset, 1)


def test_everything_is_a_function_of_seed_and_name(make: Make) -> None:
    options = {"crop": "random", "flip": 0.5, "caption_transforms": [TagShuffle()]}
    one, same = make(**options), make(**options)
    for number in (5, 0, 7):
        first, second = one.batch(number), same.batch(number)
        assert torch.equal(first.images, second.images)
        assert (first.keys, first.prompts, first.sizes) == (second.keys, second.prompts, second.sizes)
    assert make(seed=1, **options).batch(0).keys != one.batch(0).keys
    assert make(name="other", **options).batch(0).keys != one.batch(0).keys


def test_random_crops_differ_between_epochs_and_variants_take_turns(make: Make) -> None:
    def views(dataset: Dataset, epochs: int) -> set:
        number = next(i for i in range(len(dataset)) if dataset.samples.key(i) == "02.png")  # 60 x 30: much to crop
        return {dataset.samples.view(epoch, number)[0] for epoch in range(epochs)}

    assert len(views(make(crop="random", flip=0.5), 20)) > 10
    assert len(views(make(crop="random", flip=0.5, variants=3), 20)) == 3
    assert views(make(crop="random", flip=0.5, variants=3), 3) == views(make(crop="random", flip=0.5, variants=3), 20)
    assert len(views(make(), 20)) == 1


def test_several_sources_are_one_dataset_with_keys_of_their_own(make: Make, images: Path) -> None:
    dataset = make([FolderSource(images), FolderSource(images, repeat=2)])
    counts = Counter(epoch_keys(dataset))
    assert counts["0/01.png"] == 1
    assert counts["1/01.png"] == 2


def test_control_image_and_loss_mask_reach_the_batch(make: Make, images: Path, tmp_path: Path) -> None:
    names = FolderSource(images).files
    for folder in ("control/sub", "masks/sub"):
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        with Image.open(images / name) as image:
            image.save(tmp_path / "control" / name)
            if "sub" in name:
                Image.new("L", image.size, 51).save(tmp_path / "masks" / name)
    dataset = make(FolderSource(images, control_images=tmp_path / "control", loss_masks=tmp_path / "masks"))
    for number in range(dataset.batches_per_epoch):
        batch = dataset.batch(number)
        assert torch.allclose(batch.inputs["control_image"] * 2 - 1, batch.images, atol=1e-6)
        if not any("sub" in key for key in batch.keys):
            assert batch.loss_mask is None
            continue
        assert batch.loss_mask is not None
        assert batch.loss_mask.shape == (len(batch), 1, 32, 32)
        for key, mask in zip(batch.keys, batch.loss_mask, strict=True):
            assert mask.mean().item() == pytest.approx(0.2 if "sub" in key else 1.0)


def test_images_with_and_without_a_condition_image_in_one_dataset_are_an_error(make: Make, images: Path) -> None:
    both = [FolderSource(images, control_images=images), FolderSource(images)]
    for sources in (both, both[::-1]):
        with pytest.raises(
            ValueError, match=r"data\.main\.source: \d/\S+\.png has no control_image, which other images"
        ):
            make(sources, batch_size=22).batch(0)


def test_broken_images_are_named_replaced_and_listed(make: Make, images: Path) -> None:
    (images / "broken.png").write_bytes(b"no image")
    content = (images / "01.png").read_bytes()
    (images / "01.png").write_bytes(content[: len(content) // 2])  # its header is whole
    dataset = make()
    assert [file.key for file in dataset.bad] == ["broken.png"]
    sizes = [len(dataset.batch(number)) for number in range(dataset.batches_per_epoch)]
    assert sorted(sizes) == [3, 4, 4]
    assert [file.key for file in dataset.bad] == ["broken.png", "01.png"]
    assert "truncated" in dataset.bad[1].reason
    assert [line for line in dataset.lines if "left out" in line] == [
        f"data.main: {file.key} is left out: {file.reason}" for file in dataset.bad
    ]
    assert epoch_keys(make()) == epoch_keys(dataset)  # which image stands in is no matter of chance
    assert "01.png" not in epoch_keys(dataset)


def test_too_many_bad_images_stop_the_run_with_a_list(make: Make, images: Path) -> None:
    for number in range(3):
        (images / f"bad {number}.png").write_bytes(b"no image")
    assert len(make().bad) == 3
    with pytest.raises(ValueError, match=r"data.main.source: 3 of 14 images cannot be used; .*\n  bad 0.png: Unid"):
        make(max_bad=2)
    with pytest.raises(ValueError, match="3 of 14 images cannot be used"):
        make(max_bad=0.1)


def test_a_caption_that_cannot_be_read_makes_its_image_bad(make: Make, images: Path) -> None:
    (images / "01.txt").write_bytes(b"\xff\xff")
    dataset = make()
    assert [file.key for file in dataset.bad] == ["01.png"], "at once, whatever is cached"
    assert "01.txt is not UTF-8" in dataset.bad[0].reason
    assert "01.png" not in epoch_keys(dataset)


def test_a_size_beyond_what_the_model_can_place_is_an_error_that_names_an_image(make: Make, images: Path) -> None:
    Image.new("RGB", (400, 8)).save(images / "long.png")
    with pytest.raises(
        ValueError, match=r"data\.main\.bucket: 8 x 224, e\.g\. for long\.png, is longer than the 64 pixels"
    ):
        make(bucket=RatioBucket(32 * 32, num_buckets=3), max_side=64)


def test_if_no_image_of_a_size_can_be_read_the_run_stops(make: Make, images: Path) -> None:
    for path in images.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="no image of size 32 x 32 can be read; the last: "):
        make().batch(0)


def test_padded_batches_have_full_size_and_no_loss_on_the_padding(make: Make) -> None:
    dataset = make(underfilled="pad")
    masks = [dataset.batch(number).loss_mask for number in range(dataset.batches_per_epoch)]
    padded = [mask for mask in masks if mask is not None]
    assert len(padded) == 1  # 11 = 4 + 4 + 3
    assert padded[0][:, 0, 0, 0].tolist() == pytest.approx([4 / 3, 4 / 3, 4 / 3, 0])


def test_the_log_says_what_an_epoch_is(make: Make) -> None:
    dataset = make(template=["{pt1}{caption}"])
    assert dataset.lines[:6] == summary_lines(dataset)
    assert dataset.lines[0] == "data.main: 11 images, 11 with a caption"
    assert dataset.lines[6:] == [
        "data.main: 1 of 3 batches have fewer than 4 images",
        "data.main: word_names has no entry for {pt1}, so the templates get nothing there",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0 is not a batch size; use 1 or more"),
        ({"weight": 0}, "weight: 0 would never draw this dataset"),
        ({"underfilled": "mend"}, "underfilled: 'mend' is unknown; use 'keep', 'pad', 'repeat', 'drop', 'merge'"),
        ({"cache_latents": "ram"}, "cache_latents: 'ram' is unknown; use False, 'memory', 'disk'"),
        ({"crop": "left"}, "crop: 'left' is unknown; use 'center' or 'random'"),
        ({"flip": 2}, "flip: 2 is no probability"),
        ({"variants": 0, "crop": "random"}, "variants: 0 is too few"),
        ({"variants": 2}, "variants: all 2 would be equal"),
        ({"crop": "random", "cache_latents": "disk"}, "cache_latents: crops, flips .* set variants: 4"),
        ({"source": []}, "source: the list is empty"),
        ({"source": FixedBucket(8)}, "source: FixedBucket is no source; use e.g. hcpdiff.data.FolderSource"),
        (
            {"source": [HuggingFaceStream("cats")]},
            "source: HuggingFaceStream is a stream; use StreamDataset instead of Dataset",
        ),
        ({"bucket": [FixedBucket(8), 8]}, "bucket: int is no bucket; use e.g. hcpdiff.data.RatioBucket"),
    ],
)
def test_wrong_settings_are_named(make: Make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(**{"source": NoFiles(), "bucket": FixedBucket(32), "batch_size": 4, **options})


def test_mistakes_of_the_bucket_and_the_source_say_where_they_are(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.main\.bucket\.size: the model needs sides that divide by 8"):
        make(bucket=FixedBucket(30))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.main\.source\[1\]\.path: no images in .*empty"):
        make([NoFiles(), FolderSource(tmp_path / "empty")])
    with pytest.raises(ValueError, match=r"data\.main\.underfilled: 'drop' leaves nothing"):
        make(batch_size=99, underfilled="drop")


def test_a_source_is_any_class_with_five_methods(make: Make) -> None:
    assert make(NoFiles()).batch(0).prompts == [Prompt("")] * 4


def test_a_prepared_dataset_can_be_sent_to_another_process(make: Make) -> None:
    dataset = make()
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).batch(1).images, dataset.batch(1).images)


def test_annotations_of_everything_public_can_be_resolved() -> None:
    for name in hcpdiff.data.__all__:
        constructor = getattr(hcpdiff.data, name).__init__
        given = set(getattr(constructor, "__annotations__", {}))
        assert typing.get_type_hints(constructor).keys() == given, name


class NoFiles:
    """Six white squares."""

    def __len__(self) -> int:
        return 6

    def key(self, index: int) -> str:
        return str(index)

    def size(self, index: int) -> tuple[int, int]:
        return 40, 40

    def captions(self, index: int) -> list[str]:
        return []

    def load(self, index: int, at_least: tuple[int, int] | None = None) -> Record:
        return Record(Image.new("RGB", (40, 40), "white"))
