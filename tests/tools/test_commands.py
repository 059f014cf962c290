"""The commands as a user types them, with the model that comes with hcpdiff."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcpdiff import cli
from hcpdiff.models import SD3
from tests.tools.tiny_models import save_lora

Run = Callable[..., tuple[int, str, str]]
TINY = "hcpdiff/tiny-sd3"


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA whose effect can be seen."""
    path, live = tmp_path_factory.mktemp("style") / "style.safetensors", SD3.from_pretrained(TINY, t5=False)
    return save_lora(live, path, on=["denoiser", "text_encoders"], layers=[r"re:.*(?:attn|mlp).*"], rank=4)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `hcpdiff` in an empty folder: (exit code, stdout, the last line of stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HCPDIFF_DEBUG", raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, (err.splitlines() or [""])[-1]

    return call


def merge_arguments(style: Path, out: str = "merged") -> list[str]:
    return ["merge", "--cfg", "merge", f"merge.adapters.style.path={style}", f"merge.out={out}"]


def picture(run: Run, out: str, *arguments: str) -> np.ndarray:
    """One of three steps."""
    settings = ["infer.prompts=[a red star]", "infer.steps=3", "infer.images_per_prompt=1", f"infer.out={out}"]
    assert run("infer", "--cfg", "infer", *settings, *arguments)[0] == 0
    return np.asarray(Image.open(next(Path(out).glob("0*.png")))).astype(int)


def test_a_merged_model_draws_what_the_adapter_does(run: Run, style: Path) -> None:
    arguments = [*merge_arguments(style), "merge.adapters.style.strength=0.7", "merge.dtype=float32"]
    code, out, _ = run(*arguments)
    assert (code, out) == (0, "wrote merged: 77 layers differ from those of the base\n")
    adapters = [f"infer.adapters.style={{path: {style}, strength: 0.7}}"]
    with_adapter = picture(run, "a", *adapters)
    merged = picture(run, "b", "~infer.adapters", "model.path=merged")
    plain = picture(run, "c", "~infer.adapters")
    assert abs(merged - with_adapter).max() <= 1  # float32's rounding, and then that to 255 steps
    assert abs(merged - plain).mean() > 2


def test_the_lora_is_found_again_and_made_smaller(run: Run, style: Path) -> None:
    assert run(*merge_arguments(style), "merge.dtype=float32")[0] == 0
    code, out, _ = run("extract", TINY, "merged", "--rank", "4", "--out", "again.safetensors")
    assert code == 0
    assert out.startswith("wrote again.safetensors: 77 layers of rank 4 with 100.0% of the squared change; least in ")
    code, out, _ = run("resize", "again.safetensors", "--rank", "2", "--out", "small.safetensors")
    assert code == 0
    assert out.startswith("wrote small.safetensors: 77 layers of rank 2, off by ")
    code, out, _ = run("inspect", "small.safetensors")
    assert code == 0
    assert "\nrank           2\n" in out
    code, out, _ = run("inspect", "small.safetensors", "--json")
    assert len(json.loads(out)["layers"]) == 77


def test_layers_of_a_model_are_listed(run: Run) -> None:
    code, out, _ = run("inspect", TINY, "--layers")
    assert code == 0
    assert "\n  denoiser.transformer_blocks.0.attn.to_q " in out


def test_mistakes_of_a_merge_are_found_by_check_and_by_the_command(run: Run, style: Path) -> None:
    for wrong, message in [
        ("merge.adapters.style.strengh=1", "merge.adapters.style takes no such argument; did you mean 'strength'?"),
        ("merge.dtype=half", "'half' is not one of float32, bfloat16, float16"),
        ("merge.base=nowhere", "merge.base: no folder at nowhere"),
        ("merge.adapters.style.path=nowhere", "merge.adapters.style.path: no file or folder at nowhere"),
        ("merge.adapters.style.layers=['re:.*atn']", "merge.adapters.style.layers[0]: 're:.*atn' matches none of the"),
        ("merge.adapters=null", "merge.adapters: "),
        ("merge.shard_size=0", "merge.shard_size: 0 is no size of a file; use e.g. 5GB or 500MB"),
        ("merge.out=.", "merge.out: . is there already"),
        ("merge.parts={a: {path: .}}", "merge.parts.a: merge.parts.a needs 'strength'"),
    ]:
        arguments = [*merge_arguments(style)[1:], wrong]
        for command in ("check", "merge"):
            code, out, err = run(command, *arguments)
            assert (code, out) == (2, "")
            assert message in err
    assert run("check", *merge_arguments(style)[1:])[:2] == (0, "merge: no mistakes\n")
    assert list(Path().iterdir()) == []


def test_a_config_without_the_section_is_told(run: Run) -> None:
    code, _, err = run("merge", "--cfg", "lora")
    assert code == 2
    assert err.endswith("merge: is missing; add this section")


def test_a_check_of_a_base_on_the_hub_downloads_nothing(run: Run, style: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("hcpdiff.tools.model_files.local_folder", fail)
    assert run("check", *merge_arguments(style)[1:], "merge.base=somebody/model")[0] == 0
