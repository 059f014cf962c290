"""Where the numbers and pictures of a run go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image


class Logger(Protocol):
    """What a run calls; write a class with these methods and name it under `train.loggers`."""

    def start(self, folder: Path, step: int) -> None:
        """The run writes to `folder` and goes on after optimizer step `step` (0: it is new)."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after optimizer step `step`."""
        ...

    def picture(self, step: int, name: str, image: Image.Image) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object per optimizer step in metrics.jsonl; a resumed run drops the lines that it will write again."""

    def start(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step] if step else []
        new = path.with_name(f".{path.name}")
        new.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        new.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | dict(values)) + "\n")
        self._file.flush()

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Pictures are files already."""

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    """The complete lines of a file: a killed run may have left half a line at the end."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


class TensorBoard:
    """Event files under tensorboard/."""

    def start(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        import numpy as np

        self._writer.add_image(name, np.array(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; needs the extra `hcpdiff[wandb]`.

    Args:
        project: the project that the run belongs to.
        mode: "offline" keeps everything on this machine.
    """

    def __init__(self, *, project: str, name: str | None = None, mode: str = "online") -> None:
        self.project, self.name, self.mode = project, name, mode

    def start(self, folder: Path, step: int) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("train.loggers: WandB needs the package wandb; install hcpdiff[wandb]") from error
        self._wandb = wandb
        self._run = wandb.init(project=self.project, name=self.name or folder.name, dir=str(folder), mode=self.mode)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()
