"""`hcpdiff train`: from a config to a finished run."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hcpdiff.config import Config, build, load, require, to_yaml
from hcpdiff.config.stored import CONFIG
from hcpdiff.plugins.attach import attach
from hcpdiff.train import provenance
from hcpdiff.train.checkpoint import checkpoints
from hcpdiff.train.fingerprints import fingerprint
from hcpdiff.train.trainer import Trainer

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

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
    folder = Path(config.get("exp_dir") or f"exps/{config.get('name', Path(cfg).stem)}").expanduser()
    _start(folder, resume, config)  # before the folder is made
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder), _log_file(folder / "train.log"):
        start = _start(folder, resume, config)
        trainer = make_trainer(config, folder)
        if start is not None:
            trainer.resume(start)
        if _is_main_process():
            (folder / "config.yaml").write_text(to_yaml(config, interpolations=True), encoding="utf-8")
        trainer.fit()
    return folder


def make_trainer(config: Config, folder: Path) -> Trainer:
    """The objects of a checked config, put together."""
    seed, datasets, settings = config.get("seed", 0), build(config, "data"), build(config, "train")
    settings.check_datasets(datasets)
    family = build(config, "model")
    metadata = {CONFIG: to_yaml(config, interpolations=True), provenance.BASE_HASH: fingerprint(family.denoiser)}
    if isinstance(path := config["model"].get("path"), str):
        metadata[provenance.BASE] = path
    plugins = attach(family, build(config, "plugins") if config.get("plugins") else {}, seed=seed)
    return Trainer(
        family,
        datasets,
        settings,
        plugins=plugins,
        folder=folder,
        words=build(config, "words") if config.get("words") else {},
        finetune=build(config, "finetune") if config.get("finetune") else (),
        seed=seed,
        metadata=metadata,
        about=build(config, "about") if config.get("about") else None,
        config=metadata[CONFIG],
        discard_unused=True,
    )


def _start(folder: Path, resume: str | Path | None, config: Config) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    if not (resume is None or isinstance(resume, (str, os.PathLike))):
        raise ValueError(f'resume: {resume!r} is no checkpoint; use "auto", or a checkpoint\'s folder')
    found = checkpoints(folder / "checkpoints")
    if resume is None:
        if found:
            raise ValueError(
                f"{folder}: there is a run in it already, with checkpoints up to {found[-1].name}; go on with "
                f"--resume auto, or start a new one with {_another(config)}"
            )
        return None
    if str(resume) == "auto":
        return found[-1] if found else None
    path = Path(resume).expanduser()
    if not path.is_dir():
        have = f"; {folder} has {', '.join(p.name for p in found)}" if found else ""
        raise FileNotFoundError(f"--resume: no checkpoint at {path}{have}")
    return path


def _another(config: Config) -> str:
    """The override with which this config writes to another folder."""
    follows_name = config.get("exp_dir") is None or "${name}" in str(config.written().get("exp_dir"))
    return "name=ANOTHER" if follows_name else "exp_dir=ANOTHER"


def _is_main_process() -> bool:
    """Of those that a launcher such as torchrun started, before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Inside, no other run can use the folder. The system frees it when the process ends, however that happens."""
    if fcntl is None or not _is_main_process():
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is writing to it; wait for its end, or use another name") from None
        except OSError as error:  # a file system without locks
            log.warning("%s cannot be locked (%s); take care that no other run uses it", folder, error)
        yield


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
