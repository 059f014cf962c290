from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import hcpdiff
from hcpdiff.cli import main
from hcpdiff.train import checkpoint
from hcpdiff.train.callbacks import Callback
from hcpdiff.train.trainer import Trainer
from tests.train import runs

REPOSITORY = Path(__file__).parents[2]
CONFIG = """
name: test
seed: 0
exp_dir: {folder}
model: {{_target_: hcpdiff.models.SD3.from_pretrained, path: hcpdiff/tiny-sd3, t5: false}}
data:
  main:
    source: {{_target_: hcpdiff.data.Scenes, count: 5}}
    bucket: {{_target_: hcpdiff.data.FixedBucket, size: 48}}
    batch_size: 2
    cache_text: memory
plugins:
  style: {{_target_: hcpdiff.plugins.LoRA, layers: ['re:transformer_blocks\\.0\\.attn\\.to_[qk]'], rank: 2, lr: 1e-3}}
train:
  steps: 2
  optimizer: {{_target_: torch.optim.AdamW, lr: 1e-3}}
  log_every: 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(folder=tmp_path / "run"), encoding="utf-8")
    return path


class Interrupt(Callback):
    """Sends a signal to the run itself after a step."""

    def __init__(self, number: int, after: int) -> None:
        self.number, self.after = number, after

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        if trainer.step == self.after:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_run_goes_on_from_there(tmp_path: Path, number: int) -> None:
    handler = signal.getsignal(number)
    whole = runs.make(tmp_path / "whole")
    whole.fit()
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3; go on with --resume auto"):
        runs.make(tmp_path / "parts", callbacks=[Interrupt(number, 3)]).fit()
    assert signal.getsignal(number) is handler
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "parts" / "checkpoints")] == ["step-000003"]
    assert not (tmp_path / "parts" / "style.safetensors").exists()
    rest = runs.make(tmp_path / "parts")
    rest.resume(tmp_path / "parts" / "checkpoints" / "step-000003")
    rest.fit()
    assert runs.same(runs.tensors(whole.state()), runs.tensors(rest.state()))
    assert runs.metrics(tmp_path / "whole") == runs.metrics(tmp_path / "parts")


@pytest.mark.slow
def test_a_process_group_with_workers_that_is_told_to_stop_saves_and_exits_with_130(
    config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hcpdiff", "train", "--cfg", str(config), "train.steps=1000", "train.workers=2"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on the thread count
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "go on with --resume auto" in errors
    saved = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert len(saved) == 1
    steps = checkpoint.step_of(saved[0]) + 2
    for changes in (["--resume", "auto"], [f"exp_dir={tmp_path / 'whole'}"]):  # in fresh processes, as a user's are
        command = [sys.executable, "-m", "hcpdiff", "train", "--cfg", str(config), f"train.steps={steps}", *changes]
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    assert runs.metrics(tmp_path / "run") == runs.metrics(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def weights(folder: Path) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in load_file(folder / "style.safetensors").items()}


def test_a_notebook_trains_twice_and_makes_pictures_with_what_it_trained(config: Path, tmp_path: Path) -> None:
    folder = hcpdiff.train(config)
    assert folder == tmp_path / "run"
    assert hcpdiff.load_config(folder / "config.yaml")["train"]["steps"] == 2
    with pytest.raises(
        ValueError, match="there is a run in it already, with checkpoints up to step-000002; go on with"
    ):
        hcpdiff.train(config)
    again = hcpdiff.train(config, [f"exp_dir={tmp_path / 'again'}", "train.precision=bf16"])
    assert weights(again) != weights(folder)
    adapter = f"infer.adapters={{style: {{path: {folder / 'style.safetensors'}, strength: [0, 1]}}}}"
    overrides = [adapter, "infer.size=[48,48]", "infer.steps=2", f"infer.out={tmp_path / 'out'}"]
    pictures = hcpdiff.infer(config, overrides, changes={"prompts": ["a red star, small"]})
    assert [picture.prompt.positive for picture in pictures] == ["a red star, small"] * 2


def test_resume_auto_begins_a_run_that_has_no_checkpoint_and_a_wrong_path_is_an_error(
    config: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match=r"--resume: no checkpoint at .*nowhere"):
        hcpdiff.train(config, resume=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()
    hcpdiff.train(config, ["train.steps=1"], resume="auto")
    hcpdiff.train(config, ["train.steps=2"], resume="auto")
    assert [line["step"] for line in runs.metrics(tmp_path / "run")] == [1, 2]


class Recorder(Callback):
    """A user's own callback."""

    steps: list[int] = []  # noqa: RUF012

    def __init__(self, *, only: int) -> None:
        self.only = only

    def on_step(self, trainer: Trainer, losses: Mapping[str, Any], images: int, seconds: float) -> None:
        if trainer.step == self.only:
            self.steps.append(trainer.step)


def test_a_callback_of_the_user_is_named_by_target(config: Path) -> None:
    Recorder.steps.clear()
    target = "train.callbacks=[{_target_: tests.train.test_run.Recorder, only: 2}]"
    hcpdiff.train(config, [target], trust=["tests"])
    assert Recorder.steps == [2]


def test_a_run_whose_loss_is_no_number_exits_with_1(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "--cfg", str(config), "plugins.style.lr=1e30", "train.max_grad_norm=null", "train.steps=9"])
    assert code == 1
    told = capsys.readouterr().err
    assert "the loss of data.main is not finite for scene-" in told
    assert "Look at these files" in told
    assert "Traceback" not in told
    assert "NonFiniteLossError" in (tmp_path / "run" / "train.log").read_text()


def test_what_is_exported_says_how_it_was_made(config: Path, tmp_path: Path) -> None:
    from hcpdiff.plugins.weights import load

    hcpdiff.train(config)
    header = load(tmp_path / "run" / "style.safetensors").metadata
    assert header["hcpdiff.step"] == "2"
    assert "rank: 2" in header["hcpdiff.config"]
    assert torch.is_tensor(next(iter(load_file(tmp_path / "run" / "style.safetensors").values())))


def test_the_saved_config_runs_again_under_another_name(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config.write_text(config.read_text().replace(f"exp_dir: {tmp_path / 'run'}", "exp_dir: exps/${name}"))
    assert hcpdiff.train(config, ["train.steps=1"]) == Path("exps/test")
    saved = Path("exps/test/config.yaml")
    assert "exp_dir: exps/${name}\n" in saved.read_text()
    with pytest.raises(ValueError, match=r"or start a new one with name=ANOTHER$"):
        hcpdiff.train(saved)
    assert hcpdiff.train(saved, ["name=other"]) == Path("exps/other")
    assert weights(Path("exps/other")) == weights(Path("exps/test"))


def test_a_folder_that_does_not_follow_the_name_is_left_by_another_exp_dir(config: Path, tmp_path: Path) -> None:
    folder = hcpdiff.train(config, ["train.steps=1"])
    with pytest.raises(ValueError, match=r"or start a new one with exp_dir=ANOTHER$"):
        hcpdiff.train(folder / "config.yaml", ["name=other"])
    hcpdiff.train(folder / "config.yaml", [f"exp_dir={tmp_path / 'other'}"])
    assert weights(tmp_path / "other") == weights(folder)


def test_a_refused_resume_leaves_the_config_of_the_run_as_it_was(config: Path, tmp_path: Path) -> None:
    folder = hcpdiff.train(config, ["train.steps=1"])
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ValueError, match="it is of a run that trains something else"):
        hcpdiff.train(config, ["plugins.style.rank=4", "train.steps=3"], resume="auto")
    assert (folder / "config.yaml").read_text() == before
    hcpdiff.train(config, ["train.steps=2"], resume="auto")
    assert "steps: 2" in (folder / "config.yaml").read_text()


class Second(Callback):
    """Starts the run a second time while it runs."""

    refusals: ClassVar[list[str]] = []

    def __init__(self, cfg: str) -> None:
        self.cfg = cfg

    def on_start(self, trainer: Trainer) -> None:
        (trainer.folder / "checkpoints" / ".step-000001.tmp").mkdir(parents=True)
        try:
            hcpdiff.train(self.cfg, resume="auto")
        except ValueError as error:
            self.refusals.append(str(error))
        assert (trainer.folder / "checkpoints" / ".step-000001.tmp").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_a_folder_is_for_one_run_at_a_time(config: Path, tmp_path: Path) -> None:
    Second.refusals.clear()
    target = f"train.callbacks=[{{_target_: tests.train.test_run.Second, cfg: {config}}}]"
    hcpdiff.train(config, [target], trust=["tests"])
    assert Second.refusals == [
        f"{tmp_path / 'run'}: another run is writing to it; wait for its end, or use another name"
    ]
    hcpdiff.train(config, ["train.steps=3"], resume="auto")  # it is free again


def test_a_home_folder_in_exp_dir_and_resume_is_found(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert hcpdiff.train(config, ["exp_dir='~/mine'", "train.steps=1"]) == tmp_path / "mine"
    hcpdiff.train(config, ["exp_dir='~/mine'"], resume="~/mine/checkpoints/step-000001")
    assert len(runs.metrics(tmp_path / "mine")) == 2
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": "train.steps=2"}, r"^overrides: a text is not a list; use \['train\.steps=2'\]$"),
        ({"resume": True}, r"^resume: True is no checkpoint; use \"auto\", or a checkpoint's folder$"),
        ({"overrides": ["name=null"]}, "name: null is not text"),
        ({"overrides": ["data.main.loss_weight=0"]}, "data.main.loss_weight: 0 for every dataset would train nothing"),
    ],
)
def test_arguments_of_the_wrong_kind_are_told_before_a_folder_is_made(
    config: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hcpdiff.train(config, **arguments)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_says_which_settings_are_not_as_they_were(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config.write_text(
        config.read_text() + "  schedule: {_target_: hcpdiff.train.schedules.cosine, steps: '${train.steps}'}\n"
    )
    folder = hcpdiff.train(config, ["train.steps=1"])
    caplog.clear()
    hcpdiff.train(config, ["train.steps=2", "train.save_every=1", "train.keep_last=9", "name=other"], resume="auto")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    changes = ["train.steps=3", "data.main.batch_size=1", "data.main.source.count=4", "+train.accumulate=2"]
    hcpdiff.train(config, changes, resume="auto")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.splitlines()[1:] == [
        "  data.main.source.count was 5 and is 4 now",
        "  data.main.batch_size was 2 and is 1 now",
        "  train.accumulate was not set and is 2 now",
    ]
    assert warning in (folder / "train.log").read_text()


def test_fewer_steps_than_are_done_are_an_error_and_as_many_are_told(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = hcpdiff.train(config, ["train.steps=3"])
    with pytest.raises(ValueError, match=r"step-000003: train\.steps: 2 is less than the 3 steps that are done; use"):
        hcpdiff.train(config, ["train.steps=2"], resume="auto")
    assert [path.name for path in checkpoint.checkpoints(folder / "checkpoints")] == ["step-000003"]
    hcpdiff.train(config, ["train.steps=3"], resume="auto")
    assert "these are all steps of the run; to go on, raise train.steps" in caplog.text
