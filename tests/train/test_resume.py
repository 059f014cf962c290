from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hcpdiff.data import Dataset
from hcpdiff.train import checkpoint
from hcpdiff.train.callbacks import Callback
from hcpdiff.train.optimizers import Muon
from hcpdiff.train.schedules import cosine
from hcpdiff.train.settings import EmaSettings, LayerGroup
from hcpdiff.train.trainer import Trainer
from hcpdiff.train.words import WordSpec
from tests.train import runs


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends a run like a crash after a step: nothing more is saved."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        if trainer.step == self.after:
            raise KilledError


SCHEDULE = partial(cosine, steps=6, warmup=2)


class Fractional(runs.Pictures):
    """An epoch shows six of ten pictures."""

    repeat = 0.6


def fractional() -> Dataset:
    return Dataset(Fractional(), runs.ratios(), batch_size=2, cache_latents="memory", cache_text="memory")


CASES: dict[str, dict[str, Any]] = {
    "accumulation, dropout, random crops, schedule and EMA": {
        "accumulate": 2,
        "plugins": lambda: {"style": runs.lora(dropout=0.5)},
        "data": lambda: {
            "main": runs.pictures(bucket=runs.ratios(), crop="random", flip=0.5, prompt_dropout=0.3),
            "other": runs.pictures(3, seed=1, loss_weight=0.5, cache_latents="memory", cache_text="memory"),
        },
        "schedule": SCHEDULE,
        "ema": EmaSettings(decay=0.9),
    },
    "Muon on the model's own layers": {
        "finetune": [LayerGroup(layers=["re:transformer_blocks.*"], lr=1e-3), LayerGroup(layers=["norm_out"])],
        "data": lambda: {"main": runs.pictures(cache_latents="memory", cache_text="memory")},
        "optimizer": partial(Muon, lr=1e-3, min_side=8),
        "schedule": SCHEDULE,
        "ema": EmaSettings(decay=0.9, warmup=False),
    },
    "in turn, with steps of its own, a fractional repeat, all cached": {
        "accumulate": 2,
        "data": lambda: {
            "a": fractional(),
            "b": runs.pictures(3, from_step=1, to_step=4, cache_latents="memory", cache_text="memory"),
        },
        "datasets": "sequential",
    },
    "words, one of them frozen, with a LoRA, bf16, EMA and gradient checkpointing": {
        "words": {
            "picture": WordSpec(vectors=2, lr=1e-2),
            "pic-b": WordSpec(init="b"),
            "pic-c": WordSpec(init="c", train=False),
        },
        "plugins": lambda: {"style": runs.lora()},
        "data": lambda: {"main": runs.pictures(template=["picture of {caption}", "pic-b", "pic-c"])},
        "precision": "bf16",
        "ema": EmaSettings(decay=0.9),
        "gradient_checkpointing": "all",
    },
    "mixed datasets, bf16, clipping off": {
        "plugins": lambda: {"style": runs.lora(), "text": runs.lora(on="text_encoders.clip_l", lr=None)},
        "data": lambda: {"a": runs.pictures(weight=2.0), "b": runs.pictures(3, seed=1)},
        "datasets": "mix",
        "precision": "bf16",
        "max_grad_norm": None,
    },
}


def a_run(folder: Path, case: Mapping[str, Any], **more: Any) -> Trainer:
    made = {key: value() if key in ("plugins", "data") else value for key, value in case.items()}
    return runs.make(folder, **{"steps": 6, "save_every": 2, **made, **more})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("killed_after", [2, 3])
def test_a_killed_and_resumed_run_ends_bit_identical(
    case: Mapping[str, Any], killed_after: int, tmp_path: Path
) -> None:
    whole = a_run(tmp_path / "whole", case)
    whole.fit()
    with pytest.raises(KilledError):
        a_run(
            tmp_path / "parts", case, callbacks=[Kill(killed_after)]
        ).fit()  # 3: steps were logged after the checkpoint
    rest = a_run(tmp_path / "parts", case)
    rest.resume(tmp_path / "parts" / "checkpoints" / "step-000002")
    rest.fit()
    assert runs.same(runs.tensors(whole.state()), runs.tensors(rest.state()))
    assert runs.metrics(tmp_path / "whole") == runs.metrics(tmp_path / "parts")
    assert [line["step"] for line in runs.metrics(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6]


def test_another_number_of_loader_workers_changes_nothing(tmp_path: Path) -> None:
    case = CASES["accumulation, dropout, random crops, schedule and EMA"]
    alone = a_run(tmp_path / "alone", case)
    alone.fit()
    with pytest.raises(KilledError):
        a_run(tmp_path / "parts", case, callbacks=[Kill(2)], workers=2).fit()
    rest = a_run(tmp_path / "parts", case, workers=0)
    rest.resume(tmp_path / "parts" / "checkpoints" / "step-000002")
    rest.fit()
    assert runs.same(runs.tensors(alone.state()), runs.tensors(rest.state()))
    assert runs.metrics(tmp_path / "alone") == runs.metrics(tmp_path / "parts")


def test_a_finished_run_that_is_made_longer_has_the_rates_of_the_longer_run(tmp_path: Path) -> None:
    def run(name: str, steps: int) -> Trainer:
        return runs.make(tmp_path / name, steps=steps, schedule=partial(cosine, steps=steps))

    run("parts", 3).fit()
    longer = run("parts", 6)
    longer.resume(tmp_path / "parts" / "checkpoints" / "step-000003")
    longer.fit()
    run("whole", 6).fit()
    rates = [[line["lr/style"] for line in runs.metrics(tmp_path / name)[3:]] for name in ("parts", "whole")]
    assert rates[0] == rates[1]
    assert rates[0][0] > 0


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The newest checkpoint of a finished run."""
    trainer = runs.make(tmp_path, steps=2, ema=EmaSettings(), schedule=SCHEDULE)
    trainer.fit()
    return checkpoint.checkpoints(tmp_path / "checkpoints")[-1]


def a_similar_run(folder: Path, **changes: Any) -> Trainer:
    return runs.make(folder, **{"steps": 2, "ema": EmaSettings(), "schedule": SCHEDULE, **changes})


def test_resuming_a_finished_run_changes_no_file_of_its_checkpoint(finished: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.iterdir()}
    trainer = a_similar_run(tmp_path)
    trainer.resume(finished)
    trainer.fit()
    assert {file: file.stat().st_mtime_ns for file in finished.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plugins": {"other": runs.lora()}}, "it is of a run that trains something else: plugins"),
        ({"plugins": {"style": runs.lora(rank=3)}}, r"lora_A.weight is \[2, 32\] in it and \[3, 32\] now"),
        ({"plugins": {"style": runs.lora(lr=1e-3)}}, "train.optimizer: lr of style was 0.01 and is 0.001 now"),
        ({"optimizer": partial(runs.adamw, weight_decay=0.5)}, "weight_decay of style was 0.01 and is 0.5 now"),
        (
            {"optimizer": torch.optim.SGD},
            "train.optimizer: the run had torch.optim.adamw.AdamW, not torch.optim.sgd.SGD",
        ),
        ({"ema": None}, "train.ema: the run had an average, not no average"),
        ({"schedule": None}, "train.schedule: the run had torch.optim.lr_scheduler.LambdaLR, not None"),
        ({"seed": 1}, "seed: the run had 0, not 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    finished: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    trainer = a_similar_run(tmp_path / "other", **changes)
    before = runs.tensors(trainer.state())
    with pytest.raises(ValueError, match=message) as error:
        trainer.resume(finished)
    assert str(error.value).startswith(f"{finished}: ")
    assert runs.same(before, runs.tensors(trainer.state()))


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.json", "manifest.json"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_file(finished: Path, tmp_path: Path, name: str) -> None:
    file = finished / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=name) as error:
        a_similar_run(tmp_path).resume(finished)
    assert "damaged" in str(error.value)
    (finished / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(finished)


def test_what_a_kill_leaves_of_a_half_written_checkpoint_is_none_and_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> str:
        raise KilledError

    checkpoint.save(tmp_path, 1, {"weights": {"w": torch.ones(2)}}, keep_last=3)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_hash", killed)
        with pytest.raises(KilledError):
            checkpoint.save(tmp_path, 2, {"weights": {"w": torch.ones(2)}}, keep_last=3)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000001"]
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.save(tmp_path, 3, {"weights": {"w": torch.ones(2)}}, keep_last=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    runs.make(tmp_path, steps=5, save_every=1, keep_last=2).fit()
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step-000004", "step-000005"]


def test_checkpoints_after_the_one_that_a_run_goes_on_from_are_set_aside(tmp_path: Path) -> None:
    runs.make(tmp_path, steps=4, save_every=1, keep_last=3).fit()
    rest = runs.make(tmp_path, steps=3, save_every=1, keep_last=1)
    rest.resume(tmp_path / "checkpoints" / "step-000002")
    rest.fit()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000003.old", "step-000004.old"]


def test_a_state_comes_back_from_a_checkpoint_as_it_was(tmp_path: Path) -> None:
    state = {
        "weights": {"a.b": torch.arange(6.0).view(2, 3).t(), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "rate": 0.1}}, "groups": [{"betas": (0.9, 0.99)}]},
        "nothing": None,
        "numbers": {"infinite": float("inf"), "tiny": 5e-324, "flag": True},
    }
    loaded = checkpoint.load(checkpoint.save(tmp_path, 7, state, keep_last=1))
    assert runs.same(runs.tensors(loaded), runs.tensors(state))
    assert loaded["optimizer"]["state"][0]["rate"] == 0.1
    assert loaded["optimizer"]["groups"] == [{"betas": [0.9, 0.99]}]
    assert loaded["nothing"] is None
    assert loaded["numbers"] == state["numbers"]
    manifest = json.loads((tmp_path / "step-000007" / "manifest.json").read_text())
    assert manifest["step"] == 7


def test_what_cannot_be_saved_without_running_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.hook is a function"):
        checkpoint.save(tmp_path, 1, {"optimizer": {"hook": lambda: None}}, keep_last=1)
    assert checkpoint.checkpoints(tmp_path) == []
