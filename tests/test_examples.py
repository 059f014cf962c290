"""Everything in examples/ runs, and is used from a config as a user would."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

import hcpdiff
from hcpdiff.config import ConfigError
from hcpdiff.diffusion.process import FlowMatching

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
TINY = json.loads((ROOT / "hcpdiff/assets/tiny-sd3/transformer/config.json").read_text(encoding="utf-8"))
WIDTH = TINY["num_attention_heads"] * TINY["attention_head_dim"]
STRIPED = ROOT / "examples" / "data" / "striped"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: the current one, with the examples as modules."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(name: str, *, trust: Sequence[str] = (), source: object = None, **sections: object) -> list[float]:
    """The losses of a short run of a config `name`.yaml, which writes to the folder `name`."""
    settings = {"steps": 2, "preview": None, "loggers": [], **sections.pop("train", {})}  # type: ignore[dict-item]
    main = {"batch_size": 2, "source": source or {"path": STRIPED.as_posix()}, "cache_text": False}
    config = {"defaults": ["lora", "_self_"], "exp_dir": name, "data": {"main": main}, "train": settings, **sections}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = hcpdiff.train(f"{name}.yaml", trust=trust)  # type: ignore[operator]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_short_and_runs(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_plugins_of_a_users_own_are_trained_saved_and_used(project: Path) -> None:
    skip = {
        "_target_": "custom_plugin.ResidualSkip",
        "from_layers": ["transformer_blocks.0.attn.to_q"],
        "to_layers": ["transformer_blocks.1.attn.to_q"],
        "width": WIDTH,
        "lr": 1e-2,
    }
    swap = {
        "_target_": "custom_plugin.ActivationSwap",
        "on": "text_encoders.clip_l",
        "layers": ["re:.*mlp"],
        "lr": 1.0,
    }
    train("run", trust=["custom_plugin"], plugins={"_replace_": True, "skip": skip, "swap": swap})
    short = ["infer.steps=2", "infer.guidance=1", "infer.images_per_prompt=1", "~infer.adapters.style"]
    changes = {"prompts": ["a red star"]}
    (plain,) = hcpdiff.infer("infer", short, changes=changes)  # type: ignore[operator]
    for name in ("skip", "swap"):
        attached = [*short, f"infer.adapters.{name}.path=run/{name}.safetensors"]
        (changed,) = hcpdiff.infer("infer", attached, changes=changes, trust=["custom_plugin"])  # type: ignore[operator]
        assert changed.image.tobytes() != plain.image.tobytes(), name


def test_a_source_of_a_users_own_is_trained_on(project: Path) -> None:
    captions = json.loads((STRIPED / "captions.json").read_text(encoding="utf-8"))
    rows = [f"{STRIPED / name},{text}" for name, text in captions.items()]
    Path("table.csv").write_text("\n".join(["file,caption", *rows]), encoding="utf-8")
    source = {"_replace_": True, "_target_": "custom_source.CsvSource", "path": "table.csv"}
    losses = train("table", source=source, trust=["custom_source"])
    assert len(losses) == 2
    assert f"{len(captions)} images" in Path("table/train.log").read_text(encoding="utf-8")


def test_a_loss_and_a_weighting_of_a_users_own_are_trained_with(project: Path) -> None:
    own = {
        "loss": {"_target_": "custom_loss.log_cosh", "sharpness": 8},
        "weighting": {"_target_": "custom_loss.middle_first", "edge": 0.5},
    }
    assert train("plain") != train("own", train=own, trust=["custom_loss"])


def test_code_that_is_not_trusted_is_refused_with_what_to_do(project: Path) -> None:
    with pytest.raises(ConfigError, match="trust its code with --trust custom_loss"):
        train("own", train={"loss": {"_target_": "custom_loss.log_cosh"}})


def test_the_loss_is_square_for_small_errors_and_linear_for_large_ones(project: Path) -> None:
    from custom_loss import log_cosh, middle_first  # pyright: ignore[reportMissingImports]

    t, process = torch.zeros(2), FlowMatching()
    small, large = log_cosh(torch.tensor([1e-3, 100.0]), torch.zeros(2), t, process, sharpness=4.0).tolist()
    assert math.isclose(small, 1e-6, rel_tol=0.2)  # the difference of two near numbers, in float32
    assert math.isclose(large, 2 / 16 * (400 - math.log(2)), rel_tol=1e-6)
    assert middle_first(torch.tensor([0.0, 500.0, 1000.0]), process, edge=0.2).tolist() == pytest.approx([0.2, 1, 0.2])


def test_the_notebook_trains_and_shows_pictures(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("HCPDIFF_EXAMPLE_STEPS", "2")
    notebook = nbformat.read(ROOT / "examples" / "train_and_infer.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before a commit"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project)}}).execute()
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    assert (project / "exps" / "notebook" / "style.safetensors").is_file()
