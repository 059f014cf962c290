"""What `hcpdiff` prints and the exit codes that it gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hcpdiff
from hcpdiff import cli

ROOT = Path(__file__).parent.parent
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `hcpdiff` in the repository: (exit code, stdout, stderr)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("HCPDIFF_DEBUG", raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return call


def replaced(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From now on `hcpdiff train` fails with this."""

    def fail(*args: Any, **kwargs: Any) -> Path:
        raise error

    monkeypatch.setattr("hcpdiff.train.run.train", fail)


def test_help_lists_every_command_with_a_whole_sentence(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in ("init", "train", "infer", "check", "show", "layers", "data", "merge", "inspect"):
        assert f"\n  {command} " in out
    assert "..." not in out.split("Commands:")[1]
    assert run() == (0, out, "")


def test_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == (0, f"hcpdiff {hcpdiff.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("trian",), "hcpdiff: No such command 'trian'"),
        (("train",), "hcpdiff train: Missing option '--cfg'; see hcpdiff train --help"),
        (("train", "cfgs/lora.yaml"), "hcpdiff train: Missing option '--cfg'; see hcpdiff train --help"),
        (("train", "--cfg"), "Option '--cfg' requires an argument"),
        (("train", "--frob"), "hcpdiff train: No such option: --frob"),
        (("infer", "--cfg", "infer", "--seed", "x"), "hcpdiff infer: Invalid value for '--seed': "),
        (("check", "--cfg", "nope.yaml"), "no config at nope.yaml; hcpdiff ships "),
        (("check", "--cfg", "cfgs/lore.yaml"), "no config at cfgs/lore.yaml; did you mean lora?"),
        (("check", "--cfg", "."), "no config at .; hcpdiff ships "),
        (("check", "--cfg", "lora", "train.steps"), "override: train.steps: is not `key=value`"),
        (("show", "--cfg", "lora", "train.steps=["), "override: train.steps: the value '[' needs quotes of its own"),
        (("show", "--cfg", "lora", "exp_dir=~/x"), "override: exp_dir: the value '~/x' needs quotes of its own: "),
        (
            ("show", "--cfg", "lora", "data={a: ~}"),
            "override: data: the value '{a: ~}' cannot be read; put texts with ",
        ),
        (("check", "--cfg", "lora", "model=sdx"), "override: there is no 'sdx' in 'model'; use one of "),
        (
            ("check", "--cfg", "lora", "train.stepz=3"),
            "train.stepz: train takes no such argument; did you mean 'steps'?",
        ),
        (("train", "--cfg", "lora", "train.steps=0"), "train.steps: "),
        (("train", "--cfg", "lora", "--resume", "nope"), "--resume: no checkpoint at nope"),
        (
            ("infer", "--cfg", "infer", "~infer.adapters.style", "--seed", "99999999999999999999"),
            "override: infer.seed: 99999999999999999999 is out of range; use 0 to ",
        ),
        (("check", "--cfg", "lora", "seed=null"), "override: seed: null is not a whole number"),
        (("train", "--cfg", "lora", "name=null"), "override: name: null is not text"),
        (
            ("train", "--cfg", "lora", "data.main.loss_weight=0"),
            "override: data.main.loss_weight: 0 for every dataset would train nothing; use a number above 0",
        ),
        (("infer", "--cfg", "infer", "--prompts", "nope.txt"), "--prompts: no file at nope.txt"),
        (
            ("layers", "--cfg", "lora", "transformer_blocks.0.atn"),
            "pattern[0]: 'transformer_blocks.0.atn' matches no layer",
        ),
        (("layers", "--cfg", "lora", "--on", "unet"), "'unet' is no part of this model; its parts are denoiser, "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Run, argv: tuple[str, ...], message: str) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_every_mistake_of_a_config_has_a_line(run: Run) -> None:
    code, _, err = run("check", "--cfg", "lora", "train.stepz=3", "plugins.style.rnak=4", "data.main.batch_size=0")
    assert code == 2
    assert sorted(line.split(": ")[1] for line in err.splitlines()) == [
        "data.main.batch_size",
        "plugins.style.rnak",
        "train.stepz",
    ]


def test_broken_files_are_mistakes_that_name_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "prompts.txt").write_bytes(b"a caf\xe9\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for argv, message in [
        (("check", "--cfg", str(tmp_path / "broken.yaml")), f"{tmp_path}/broken.yaml:2:2: broken YAML: "),
        (("check", "--cfg", str(tmp_path / "bytes.yaml")), f"{tmp_path}/bytes.yaml: not a YAML text file: "),
        (("infer", "--cfg", "infer", "--prompts", str(tmp_path / "prompts.txt")), "prompts.txt is not UTF-8 text: "),
        (("infer", "--cfg", "infer", "--prompts", str(tmp_path / "empty.txt")), "empty.txt has no prompts; write one"),
    ]:
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("data.main: no pictures"), 2, "data.main: no pictures"),
        (FileNotFoundError("--resume: no checkpoint at x"), 2, "--resume: no checkpoint at x"),
        (PermissionError(13, "Permission denied", "exps/lora"), 2, "exps/lora: Permission denied"),
        (IsADirectoryError(21, "Is a directory", "out.png"), 2, "out.png: Is a directory"),
        (
            OSError("x/y is not a local folder and is not on the hub"),
            2,
            "x/y is not a local folder and is not on the hub",
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "a text file is not UTF-8: "),
        (OSError(28, "No space left on device", "exps/x"), 1, "failed: OSError: [Errno 28] No space left on device"),
        (
            RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB"),
            1,
            "CUDA out of memory. Tried to allocate 2 GiB",
        ),
        (KeyError("no such thing"), 1, "failed: KeyError: 'no such thing'; HCPDIFF_DEBUG=1 shows the traceback"),
        (MemoryError(), 1, "failed: MemoryError"),
        (KeyboardInterrupt("stopped after step 3; go on with --resume auto"), 130, "stopped after step 3; go on with"),
        (KeyboardInterrupt(), 130, "interrupted; --resume auto goes on from the newest checkpoint, if there is one"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    replaced(monkeypatch, error)
    got, out, err = run("train", "--cfg", "lora")
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_debugging_shows_tracebacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, RuntimeError("boom"))
    monkeypatch.setenv("HCPDIFF_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        run("train", "--cfg", "lora")


def test_the_traceback_of_a_failed_run_is_in_its_log_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("hcpdiff.train.run.make_trainer", fail)
    code, _, err = run("train", "--cfg", "lora", f"exp_dir={tmp_path}/run")
    assert code == 1
    assert f"failed: RuntimeError: CUDA out of memory; the traceback is in {tmp_path}/run/train.log\n" in err
    assert "Traceback" not in err
    log = (tmp_path / "run" / "train.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "RuntimeError: CUDA out of memory" in log


def test_check_finds_nothing_wrong_with_the_starter_config(run: Run) -> None:
    assert run("check", "--cfg", "cfgs/lora.yaml") == (0, "cfgs/lora.yaml: no mistakes\n", "")


def test_show_tells_where_each_value_came_from(run: Run) -> None:
    code, out, _ = run("show", "--cfg", "cfgs/lora.yaml", "train.steps=7")
    lines = {line.split(": ")[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["train.steps"].startswith("train.steps: 7 ")
    assert lines["train.steps"].endswith("# override")
    assert "# cfgs/lora.yaml:" in lines["plugins.style.rank"]
    assert "# cfgs/base/train.yaml:" in lines["train.max_grad_norm"]


def test_show_tells_what_leads_nowhere_and_fails(run: Run) -> None:
    code, out, err = run("show", "--cfg", "cfgs/lora.yaml", "train.save_every=${nope}")
    assert code == 2
    assert "train.steps: 800" in out
    assert err == "override: train.save_every: ${nope} points at nothing\n"


def test_layers_lists_what_a_selector_matches(run: Run) -> None:
    code, out, _ = run("layers", "--cfg", "cfgs/lora.yaml", r"re:transformer_blocks\.0\.attn\.to_[qk]")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[:2] for line in lines[:2]] == [
        ["transformer_blocks.0.attn.to_q", "Linear"],
        ["transformer_blocks.0.attn.to_k", "Linear"],
    ]
    assert lines[2] == "2 layers of denoiser"


def test_layers_takes_overrides_with_and_without_a_selector(run: Run) -> None:
    everything = run("layers", "--cfg", "lora", "model=tiny_sd3")
    assert everything == run("layers", "--cfg", "lora")
    assert run("layers", "--cfg", "lora", "pos_embed.proj", "model=tiny_sd3")[1].endswith("1 layers of denoiser\n")


def test_data_writes_a_contact_sheet(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("data", "--cfg", "cfgs/lora.yaml", "--out", str(tmp_path / "deep" / "sheet.png"))
    assert code == 0
    assert "64 images" in out
    assert (tmp_path / "deep" / "sheet.png").stat().st_size > 1000


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    command = f"{sys.executable} -m hcpdiff show --cfg lora | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("name: lora")
    assert done.stderr == ""


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hcpdiff", "train", "--cfg", "lora", f"exp_dir={tmp_path}/run", "train.steps=40"]
    command += ["train.preview=null", "train.loggers=[]", "train.log_every=1"]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 130
    assert err.splitlines()[-1].endswith("; go on with --resume auto")
    assert "Traceback" not in err

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "go on with --resume auto, or start a new one with exp_dir=ANOTHER" in again.stderr

    subprocess.run([*command, "--resume", "auto"], cwd=ROOT, check=True, capture_output=True)
    assert len(metrics.read_text().splitlines()) == 40
