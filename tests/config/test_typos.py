"""Every key of every shipped config, mistyped in two ways, is noticed before a run starts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hcpdiff.config import loading
from hcpdiff.config.checking import check
from hcpdiff.config.loading import load
from hcpdiff.config.mistakes import ConfigError
from hcpdiff.config.yaml_files import read

CFGS = Path(__file__).parents[2] / "cfgs"
FILES = sorted(path.relative_to(CFGS).as_posix() for path in CFGS.rglob("*.yaml"))
# What stands below these is named by the user: any name is right.
NAMED_BY_THE_USER = {"data", "plugins", "words", "adapters", "overrides", "word_names", "emas"}


def keys(node: yaml.Node, parent: str = "") -> Iterator[yaml.ScalarNode]:
    """The keys of a file that mean something to hcpdiff, and the words of its defaults list."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if parent not in NAMED_BY_THE_USER:
                yield key
            yield from keys(value, key.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if parent == "defaults" and isinstance(item, yaml.ScalarNode) and item.value != "_self_":
                yield item
            yield from keys(item, "")


def typos(word: str) -> Iterator[str]:
    """The word with a letter dropped, and with two letters swapped."""
    middle = len(word) // 2
    if len(word) > 1:
        yield word[:middle] + word[middle + 1 :]
    for i in [*range(middle, len(word) - 1), *range(middle)]:
        if word[i] != word[i + 1]:
            yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]
            return


def mistakes(path: Path) -> list[str]:
    try:
        return [str(mistake) for mistake in check(load(path))]
    except ConfigError as error:
        return str(error).splitlines()


def unnoticed(folder: Path, name: str) -> list[str]:
    """The typos in the file `name` of a folder of configs that nothing complains of."""
    file = folder / name
    text = file.read_text(encoding="utf-8")
    user = folder / name
    if "/" in name:  # a piece: seen through a config that uses it, or through one of our own
        group, _, option = name.removesuffix(".yaml").rpartition("/")
        line = f"- /{group}/{option}" if group == "base" else f"- /{group}: {option}"
        users = [path for path in sorted(folder.glob("*.yaml")) if uses(path, file)]
        user = users[0] if users else folder / "a_user_of_it.yaml"
        if not users:
            user.write_text(f"defaults:\n  {line}\nname: x\n", encoding="utf-8")
    before = mistakes(user)
    missed = []
    for key in keys(yaml.compose(text)):
        for typo in typos(key.value):
            start, end = key.start_mark.index, key.end_mark.index
            file.write_text(text[:start] + text[start:end].replace(key.value, typo) + text[end:], encoding="utf-8")
            if set(mistakes(user)) <= set(before):
                missed.append(f"{name}:{key.start_mark.line + 1}: {key.value} -> {typo}")
    file.write_text(text, encoding="utf-8")
    return missed


def uses(config: Path, piece: Path) -> bool:
    try:
        return any(origin.file == piece for origin in load(config).origins.values())
    except ConfigError:
        return False


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped configs that takes their place; paths in them are still those of the checkout."""
    folder = tmp_path / "cfgs"
    shutil.copytree(CFGS, folder)
    monkeypatch.setattr(loading, "shipped_folder", lambda: folder)
    monkeypatch.chdir(CFGS.parent)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_every_typo_in_a_shipped_config_is_noticed(copied, name):
    assert unnoticed(copied, name) == []


def test_the_typos_of_a_small_config_are_noticed(shipped, toys):
    shipped(
        "shipped/my.yaml",
        """
        defaults:
          - base/train
          - model: square
          - override model: big
        name: my
        data: {main: {width: 1, height: 2}}
        train:
          steps: 3
          ema: {decay: 0.5}
          optimizer: {_target_: toybox.Optimizer, lr: 0.1}
          loggers:
            - {_target_: toybox.Square, side: 1}
        """,
    )
    folder = Path.cwd() / "shipped"
    assert unnoticed(folder, "my.yaml") == []
    assert unnoticed(folder, "base/train.yaml") == []
    assert unnoticed(folder, "model/square.yaml") == []


def test_keys_and_typos_are_what_they_say():
    text = "defaults: [a/b, {model: c}]\ntrain: {steps: 1}\ndata: {main: {loss_weight: 1}}"
    words = [key.value for key in keys(yaml.compose(text))]
    assert words == ["defaults", "a/b", "model", "train", "steps", "data", "loss_weight"]
    assert list(typos("steps")) == ["stps", "stpes"]
    assert list(typos("aab")) == ["ab", "aba"]


def test_files_are_read_again_when_they_change(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("ab: 1\n")
    assert read(path).content == {"ab": 1}
    path.write_text("ba: 1\n")
    assert read(path).content == {"ba": 1}
