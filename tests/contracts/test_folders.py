"""Tools know the folders of a family's parts without importing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hcpdiff.models.opening import FAMILIES
from hcpdiff.tools.model_files import _parts_of, of_pipeline


@pytest.mark.parametrize("pipeline", FAMILIES)
def test_tools_find_every_part_by_the_path_that_it_has_in_its_family(pipeline: str, tmp_path: Path) -> None:
    family = FAMILIES[pipeline]
    for part in family.parts.values():
        (tmp_path / part.folder).mkdir()
        (tmp_path / part.folder / "config.json").write_text(json.dumps({}))
    assert _parts_of(tmp_path, pipeline, {}) == {part.folder: path for path, part in family.parts.items()}
    found = of_pipeline(pipeline)
    assert (found and found.name) == family.architecture
