"""`hcpdiff train`: from a config to a finished run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hcpdiff.config import Config, build, load, require, to_yaml
from hcpdiff.plugins.attach import attach
from hcpdiff.train.checkpoint import checkpoints
from hcpdiff.train.trainer import Trainer

log = logging.getLogger("hcpdiff.train")


def train(
    cfg: str | Path, overrides: Sequence[str] = (), *, resume: str | Path | None = None, trust: Sequence[str] = ()
) -> Path:
    """Run the training of a config; the run's folder.

    Args:
        overrides: `key=value` in Hydra's grammar.
        resume: "auto" goes on from the newest checkpoint of this run, if there is one; or a checkpoint's folder.
        trust: packages that targets may come from, besides the known ones.

    Raises:
        ConfigError: listing every mistake in the config.
        ValueError: the run's folder holds another run, or the checkpoint does not fit.
    """
    config = load(cfg, overrides, trust)
    require(config, "model", "data", "train")
    folder = Path(config.get("exp_dir") or f"exps/{config.get('name', Path(cfg).stem)}")
    start = _start(folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with _log_file(folder / "train.log"):
        trainer = make_trainer(config, folder)
        if start is not None:
            trainer.resume(start)
        trainer.fit()
    return folder


def make_trainer(config: Config, folder: Path) -> Trainer:
    """The objects of a checked config, put together."""
    seed = config.get("seed", 0)
    family = build(config, "model")
    plugins = attach(family, build(config, "plugins") if config.get("plugins") else {}, seed=seed)
    return Trainer(
        family,
        build(config, "data"),
        build(config, "train"),
        plugins=plugins,
        folder=folder,
        finetune=build(config, "finetune") if config.get("finetune") else (),
        seed=seed,
        metadata={"hcpdiff.config": to_yaml(config)},
    )


def _start(folder: Path, resume: str | Path | None) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    found = checkpoints(folder / "checkpoints")
    if resume is None:
        if found:
            raise ValueError(
                f"{folder}: there is a run in it already, with checkpoints up to {found[-1].name}; go on with "
                "--resume auto, or start a new one with name=ANOTHER"
            )
        return None
    if str(resume) == "auto":
        return found[-1] if found else None
    path = Path(resume)
    if not path.is_dir():
        have = f"; {folder} has {', '.join(p.name for p in found)}" if found else ""
        raise FileNotFoundError(f"--resume: no checkpoint at {path}{have}")
    return path


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """What the library logs also goes to a file, and the traceback of what stops the run goes there alone."""
    logger, handler = logging.getLogger("hcpdiff"), logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    log.info("process %d started", os.getpid())
    try:
        yield
    except BaseException as error:
        failed = isinstance(error, Exception)
        text, trace = ("failed", error) if failed else (str(error) or "interrupted", None)
        kind = logging.ERROR if failed else logging.INFO
        info = None if trace is None else (type(trace), trace, trace.__traceback__)
        handler.emit(log.makeRecord(log.name, kind, __file__, 0, text, (), info))
        error.__dict__.setdefault("__notes__", []).append(f"the traceback is in {path}")
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
