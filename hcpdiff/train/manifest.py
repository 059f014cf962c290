"""When a run ends or stops, it writes which images it has shown, and how often."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hcpdiff.data.dataset import Dataset
from hcpdiff.data.manifest import write
from hcpdiff.train.callbacks import Callback

if TYPE_CHECKING:
    from hcpdiff.train.trainer import Trainer

log = logging.getLogger("hcpdiff.train")


class Manifest(Callback):
    """Writes `data/<name>.csv` and `data/<name>.bad.csv` for each dataset; see `hcpdiff.data.manifest`."""

    def on_end(self, trainer: Trainer) -> None:
        if not trainer.accelerator.is_main_process:
            return
        for name, dataset in trainer.datasets.items():
            if isinstance(dataset, Dataset):  # of what is streamed, nobody knows how much there is
                log.info(write(trainer.folder / "data", dataset, trainer.shown[name]))
