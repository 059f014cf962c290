from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hcpdiff
from hcpdiff.config import ConfigError
from hcpdiff.infer.generation import Picture
from hcpdiff.infer.request import Adapter, InferSettings, prompts_from_file
from hcpdiff.infer.save import before_after, contact_sheet, read_settings, save_picture
from hcpdiff.plugins import attach, weights
from hcpdiff.types import Prompt
from tests.infer.test_generation import shaken
from tests.train import runs

CONFIG = """
model: {{_target_: hcpdiff.models.SD3.from_pretrained, path: {model}, t5_tokens: 4}}
infer:
  prompts: [a, b]
  negative: dark
  size: [24, 28]
  steps: 2
  guidance: 3
  seed: 7
  sampler: {{_target_: hcpdiff.diffusion.samplers.euler_ancestral}}
  out: {out}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, and a file with a LoRA of random weights."""
    folder = tmp_path_factory.mktemp("model")
    family = runs.family()
    family.save_pretrained(folder / "sd3")
    weights.save(shaken(attach(family, {"style": runs.lora(lr=None)})), "style", folder / "style.safetensors")
    return folder


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "infer.yaml"
    path.write_text(CONFIG.format(model=model / "sd3", out=tmp_path / "out"), encoding="utf-8")
    return path


def test_every_picture_is_a_file_that_says_how_it_was_made(config: Path, tmp_path: Path) -> None:
    pictures = hcpdiff.infer(config, ["infer.images_per_prompt=2"], changes={"prompts": ["a, b: {c}", "d"]})
    assert [p.path.name for p in pictures if p.path] == ["00000-7.png", "00001-8.png", "00002-7.png", "00003-8.png"]
    first = pictures[0]
    assert first.path is not None
    assert Image.open(first.path).tobytes() == first.image.tobytes()
    settings = read_settings(first.path)
    assert settings["prompt"] == {"positive": "a, b: {c}", "negative": "dark"}
    assert settings["seed"] == 7
    assert settings["size"] == [24, 28]
    assert (settings["steps"], settings["guidance"]) == (2, 3)
    assert settings["sampler"].endswith("euler_ancestral")
    assert settings["adapters"] == {}
    text = Image.open(first.path).text["parameters"]  # pyright: ignore[reportAttributeAccessIssue]
    assert text.startswith("a, b: {c}\nNegative prompt: dark\nSteps: 2, CFG scale: 3, Seed: 7, Size: 28x24")


def test_what_a_file_says_makes_the_same_picture_again(config: Path, tmp_path: Path) -> None:
    made = hcpdiff.infer(config)[1]
    assert made.path is not None
    said = read_settings(made.path)
    again = hcpdiff.infer(config, changes={"prompts": [said["prompt"]["positive"]], "seed": said["seed"]})
    difference = np.asarray(again[0].image).astype(int) - np.asarray(made.image).astype(int)
    assert np.abs(difference).max() <= 1  # of 255: in a batch of one instead of two


def test_no_picture_is_overwritten(config: Path, tmp_path: Path) -> None:
    first = [picture.path for picture in hcpdiff.infer(config)]
    times = [path.stat().st_mtime_ns for path in first if path]
    second = [picture.path for picture in hcpdiff.infer(config)]
    assert [path.name for path in second if path] == ["00002-7.png", "00003-7.png"]
    assert [path.stat().st_mtime_ns for path in first if path] == times
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".png"] * 5  # and the sheet


def test_a_file_says_the_guidance_that_the_model_chose(config: Path) -> None:
    picture, *_ = hcpdiff.infer(config, ["infer.guidance=null"])
    assert picture.path
    assert read_settings(picture.path)["guidance"] == 5


def test_adapters_at_several_strengths_make_a_row_each(config: Path, model: Path) -> None:
    adapter = f"infer.adapters={{style: {{path: {model / 'style.safetensors'}, strength: [0, 0.5, 1]}}}}"
    pictures = hcpdiff.infer(config, [adapter])
    assert len(pictures) == 6
    plain = hcpdiff.infer(config)
    assert [p.image.tobytes() for p in pictures[:2]] == [p.image.tobytes() for p in plain]
    assert len({p.image.tobytes() for p in pictures}) == 6
    strengths = [read_settings(p.path)["adapters"]["style"]["strength"] for p in pictures if p.path]
    assert strengths == [0, 0, 0.5, 0.5, 1, 1]


def test_pictures_are_on_disk_as_soon_as_they_are_finished(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hcpdiff.models.sd3.family import SD3

    decode, calls = SD3.decode, []

    def failing(self: SD3, latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return decode(self, latents)

    monkeypatch.setattr(SD3, "decode", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        hcpdiff.infer(config, ["infer.batch_size=1"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000-7.png"]


def test_mistakes_are_told_before_anything_is_made(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"infer\.size: \[24, 30\] does not divide by 4"):
        hcpdiff.infer(config, ["infer.size=[24,30]"])
    with pytest.raises(ConfigError, match=r"infer\.adapters\.style\.path.*nowhere"):
        hcpdiff.infer(config, ["infer.adapters={style: {path: nowhere.safetensors}}"])
    with pytest.raises(ConfigError, match=r"infer\.prompts: the list is empty"):
        hcpdiff.infer(config, changes={"prompts": []})
    assert not (tmp_path / "out").exists()


def test_a_text_for_prompts_and_a_seed_that_torch_cannot_take_are_mistakes(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"infer\.prompts: .*; put it in brackets: \['a red star'\]"):
        hcpdiff.infer(config, changes={"prompts": "a red star"})
    with pytest.raises(ConfigError, match=r"^override: infer\.seed: 9{20} is out of range; use 0 to "):
        hcpdiff.infer(config, changes={"seed": int("9" * 20)})
    with pytest.raises(ValueError, match=r"^seed: -1 is out of range"):
        InferSettings(prompts=["a"], seed=-1)
    with pytest.raises(ValueError, match=r"^prompts: a text is not a list; use \['a cat'\]$"):
        InferSettings(prompts="a cat")  # pyright: ignore[reportArgumentType]


def test_paths_in_the_home_folder_are_found(
    config: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model))
    monkeypatch.chdir(tmp_path)
    adapter = "infer.adapters={style: {path: '~/style.safetensors'}}"
    pictures = hcpdiff.infer(config, [adapter, "infer.out='~/pictures'", "infer.prompts=[a]"])
    assert [p.path for p in pictures] == [model / "pictures" / "00000-7.png"]
    assert sorted(p.name for p in (model / "pictures").iterdir()) == ["00000-7.png", "sheet.png"]
    assert not (tmp_path / "~").exists()


def test_prompts_of_a_file_are_its_lines_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# animals\na cat, sitting\n\n  a dog  \n", encoding="utf-8")
    assert prompts_from_file(path) == ["a cat, sitting", "a dog"]
    path.write_text("\n# none\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no prompts; write one per line"):
        prompts_from_file(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        prompts_from_file(tmp_path / "nowhere.txt")


def test_strengths_are_one_or_several_but_not_none() -> None:
    assert Adapter(path="x").strengths() == [1.0]
    assert Adapter(path="x", strength=[0, 0.5]).strengths() == [0, 0.5]
    with pytest.raises(ValueError, match="strength: the list is empty"):
        Adapter(path="x", strength=[])


def test_strengths_of_several_adapters_go_together() -> None:
    def sweeps(**strengths: float | list[float]) -> list[dict[str, float]]:
        adapters = {name: Adapter(path="x", strength=value) for name, value in strengths.items()}
        return InferSettings(prompts=["a"], adapters=adapters).sweeps()

    assert sweeps() == [{}]
    assert sweeps(a=[0, 1], b=[0.5, 2], c=3.0) == [{"a": 0, "b": 0.5, "c": 3.0}, {"a": 1, "b": 2, "c": 3.0}]
    with pytest.raises(ValueError, match="lists must be equally long; a has 2, b has 3"):
        sweeps(a=[0, 1], b=[0, 1, 2])


def a_picture(colour: str, prompt: str = "a prompt") -> Picture:
    return Picture(Image.new("RGB", (48, 40), colour), Prompt(prompt), 3)


def colours(sheet: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in sheet.getcolors(1 << 24)}  # pyright: ignore[reportReturnType, reportOptionalIterable]


def test_a_sheet_shows_every_picture_enlarged_and_goes_on_in_the_next_line() -> None:
    names = ["red", "lime", "blue", "yellow", "cyan", "magenta"]
    rows = [[a_picture(name) for name in names[:5]], [a_picture("magenta", "w" * 300)]]
    sheet = contact_sheet(rows, ["first", "second"], columns=2)
    pure = {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)}
    assert pure <= colours(sheet)
    assert sheet.width < 3 * 192 < sheet.height  # two columns of pictures 192 wide; four lines
    wide = contact_sheet(rows, columns=8)
    assert wide.width > 5 * 192
    assert pure <= colours(wide)


def test_before_after_holds_both_whole() -> None:
    before, after = Image.new("RGB", (60, 30), "red"), Image.new("RGB", (40, 50), "blue")
    sheet = before_after(before, after, 7)
    counts = {colour: count for count, colour in sheet.getcolors(1 << 24)}  # pyright: ignore[reportOptionalIterable]
    assert counts[(255, 0, 0)] == 60 * 30
    assert counts[(0, 0, 255)] == 40 * 50


def test_a_picture_without_settings_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="does not say how it was made"):
        read_settings(tmp_path / "plain.png")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_picture(a_picture("red"), tmp_path / "new" / "a.png", {})
    assert list((tmp_path / "new").iterdir()) == []


def test_the_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    import hcpdiff.infer

    for name in hcpdiff.infer.__all__:
        assert callable(getattr(hcpdiff.infer, name)), name
