from __future__ import annotations

from itertools import pairwise

import pytest

from hcpdiff.data.images.views import View, Views
from hcpdiff.types import SizeInfo

ORIGINAL, TARGET = (100, 300), (64, 64)


def test_a_centred_dataset_has_one_view_that_needs_no_seed() -> None:
    views = Views()
    assert views.countable == 1
    assert views.fixed("a", 0, ORIGINAL, TARGET) == View(SizeInfo(ORIGINAL, (0, 64), TARGET))


def test_a_view_is_a_function_of_its_seed() -> None:
    views = Views("random", 0.5, augmented=True)
    seen = [views.drawn(seed, ORIGINAL, TARGET) for seed in range(40)]
    assert seen == [views.drawn(seed, ORIGINAL, TARGET) for seed in range(40)]
    assert {view.flip for view in seen} == {False, True}
    assert len({view.size.crop for view in seen}) > 30
    assert len({view.seed for view in seen}) == 40
    assert views.countable is None


def test_variants_are_spread_evenly_and_do_not_depend_on_their_number() -> None:
    few, many = Views("random", 0.5, variants=4), Views("random", 0.5, variants=8)
    crops = [many.fixed("a", variant, ORIGINAL, TARGET) for variant in range(8)]
    assert crops[:4] == [few.fixed("a", variant, ORIGINAL, TARGET) for variant in range(4)]
    lefts = sorted(view.size.crop[1] for view in crops)
    gaps = [after - before for before, after in pairwise(lefts)]
    assert max(gaps) < 3 * 129 / 8  # 129 places; drawn at random, a gap of 3 times the mean is common


def test_without_resizing_the_crop_lies_in_the_original_or_at_the_top_left() -> None:
    for view in (
        Views("random").drawn(3, ORIGINAL, (128, 64), resize=False),
        Views("random", variants=2).fixed("a", 1, ORIGINAL, (128, 64), resize=False),
        Views().fixed("a", 0, ORIGINAL, (128, 64), resize=False),
    ):
        assert view.size.scaled == ORIGINAL
        assert view.size.crop[0] == 0
        assert 0 <= view.size.crop[1] <= 300 - 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "left"}, "crop: 'left' is unknown; use 'center' or 'random'"),
        ({"flip": 1.5}, "flip: 1.5 is no probability; use a number from 0 to 1"),
        ({"variants": 0, "crop": "random"}, "variants: 0 is too few; use 1 or more"),
        ({"variants": 3, "flip": 1.0}, "variants: all 3 would be equal"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**options)
