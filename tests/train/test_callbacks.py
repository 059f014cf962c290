from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hcpdiff.infer.request import Request
from hcpdiff.train.callbacks import Callback
from hcpdiff.train.loggers import JsonLines, TensorBoard
from hcpdiff.train.settings import EmaSettings, PreviewSettings
from hcpdiff.train.trainer import Trainer
from tests.train import runs

REQUEST = Request(prompts=["a red star", "b"], size=(24, 24), steps=2, guidance=2, seed=3)


class Events(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_start(self, trainer: Trainer) -> None:
        self.seen.append("start")

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        assert losses["loss"].isfinite()
        assert images == 4  # two batches of two
        assert seconds > 0
        self.seen.append(f"step {trainer.step}")

    def on_save(self, trainer: Trainer) -> None:
        self.seen.append("save")

    def on_end(self, trainer: Trainer) -> None:
        self.seen.append("end")

    def on_exit(self, trainer: Trainer) -> None:
        self.seen.append("exit")


def test_a_callback_hears_of_everything_in_order(tmp_path: Path) -> None:
    runs.make(tmp_path, data={"main": runs.pictures(6)}, steps=2, accumulate=2, callbacks=[events := Events()]).fit()
    assert events.seen == ["start", "step 1", "save", "step 2", "end", "exit"]  # Save comes before the user's


def test_on_exit_comes_also_after_an_error_at_the_start(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_start(self, trainer: Trainer) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        runs.make(tmp_path, callbacks=[Fails(), events := Events()]).fit()
    assert events.seen == ["exit"]


def test_the_numbers_of_every_step_are_logged_whatever_log_every_is(tmp_path: Path) -> None:
    runs.make(tmp_path / "often", steps=5).fit()
    runs.make(tmp_path / "seldom", steps=5, log_every=100).fit()
    lines = runs.metrics(tmp_path / "often")
    assert lines == runs.metrics(tmp_path / "seldom")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert set(lines[0]) == {"step", "epoch", "loss", "loss/main", "grad_norm", "lr/style"}


def test_tensorboard_gets_the_same_numbers_and_the_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    preview = PreviewSettings(every=2, requests=[REQUEST], at_start=False)
    runs.make(tmp_path, steps=3, loggers=[TensorBoard()], preview=preview).fit()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(line["step"], pytest.approx(line["loss"])) for line in runs.metrics(tmp_path)]
    assert [event.step for event in events.Images("preview")] == [2, 3]


def test_a_log_that_was_cut_off_goes_on_without_its_broken_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    logger = JsonLines()
    logger.start(tmp_path, 1)
    logger.log(2, {"loss": 1.5})
    logger.close()
    assert runs.metrics(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]


def test_the_bar_shows_step_loss_rate_images_and_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.make(tmp_path, steps=3).fit()
    shown = capsys.readouterr().err
    for part in ("3/3", "loss ", "lr 1.0e-02", "images/s", "<"):
        assert part in shown


def test_previews_change_nothing_about_the_training(tmp_path: Path) -> None:
    states = []
    for name, preview in (("with", PreviewSettings(every=1, requests=[REQUEST])), ("without", None)):
        plugins = {"style": runs.lora(dropout=0.5)}
        trainer = runs.make(tmp_path / name, preview=preview, plugins=plugins, ema=EmaSettings())
        trainer.fit()
        states.append(runs.tensors(trainer.state()))
    assert runs.same(*states)
    assert runs.metrics(tmp_path / "with") == runs.metrics(tmp_path / "without")


def test_previews_come_at_the_start_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, steps=5, preview=PreviewSettings(every=2, requests=[REQUEST, REQUEST]))
    trainer.fit()
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["before-after.png", *(f"step-{step:06d}.png" for step in (0, 2, 4, 5))]


def test_before_after_shows_both_sheets(tmp_path: Path) -> None:
    runs.make(tmp_path, steps=3, preview=PreviewSettings(every=100, requests=[REQUEST])).fit()
    folder = tmp_path / "previews"
    sheet, before, after = (Image.open(folder / f"{n}.png") for n in ("before-after", "step-000000", "step-000003"))
    title = (sheet.height - before.height - after.height) // 2
    assert before.tobytes() != after.tobytes()
    assert sheet.crop((0, title, before.width, title + before.height)).tobytes() == before.tobytes()
    below = 2 * title + before.height
    assert sheet.crop((0, below, after.width, below + after.height)).tobytes() == after.tobytes()


def test_previews_show_the_averaged_weights(tmp_path: Path) -> None:
    preview = PreviewSettings(every=100, requests=[REQUEST])
    frozen = EmaSettings(decay=0.999999, warmup=False)  # stays where it began
    runs.make(tmp_path, steps=3, preview=preview, ema=frozen).fit()
    before, after = (Image.open(tmp_path / "previews" / f"step-{step:06d}.png") for step in (0, 3))
    difference = torch.frombuffer(bytearray(before.tobytes()), dtype=torch.uint8).int()
    difference = difference - torch.frombuffer(bytearray(after.tobytes()), dtype=torch.uint8).int()
    assert int(difference.abs().max()) <= 1  # of 255


def test_a_preview_that_was_not_made_in_time_is_made_after_resuming(tmp_path: Path) -> None:
    preview = PreviewSettings(every=2, requests=[REQUEST], at_start=False)
    runs.make(tmp_path, steps=2, preview=preview).fit()
    path = tmp_path / "previews" / "step-000002.png"
    pixels = Image.open(path).tobytes()
    path.unlink()
    rest = runs.make(tmp_path, steps=3, preview=preview)
    rest.resume(tmp_path / "checkpoints" / "step-000002")
    rest.fit()
    assert Image.open(path).tobytes() == pixels


def test_a_preview_of_a_size_that_the_model_cannot_make_is_refused_before_the_training(tmp_path: Path) -> None:
    requests = [REQUEST, Request(prompts=["a"], size=(24, 26))]
    with pytest.raises(
        ValueError, match=r"train\.preview\.requests\[1\]\.size: \[24, 26\] does not divide by 4.*\[24, 24\]"
    ):
        runs.make(tmp_path, preview=PreviewSettings(requests=requests))


def test_what_is_cached_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hcpdiff"):
        runs.make(tmp_path, data={"main": runs.pictures(cache_latents="memory", cache_text="memory")}).load_data()
    assert "data.main: latents of 7 images are cached, 7 of them new" in caplog.messages
    assert "data.main: conditioning of 7 prompts is cached, 7 of them new" in caplog.messages
