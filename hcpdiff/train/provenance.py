"""What a file that a run wrote says of it: what made it, from which model and data, in kohya's fields and in ours."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hcpdiff
from hcpdiff.data.dataset import Dataset
from hcpdiff.data.identity import identity
from hcpdiff.data.prompts.whole import CaptionDropout
from hcpdiff.data.seeing.summary import Summary, summarize
from hcpdiff.data.seeing.words import read_words
from hcpdiff.formats import metadata
from hcpdiff.train.compatible import named_groups

if TYPE_CHECKING:
    from hcpdiff.train.trainer import Trainer

BASE = "hcpdiff.base_model"  # where the base came from: a path, or a name on the hub
BASE_HASH = "hcpdiff.base_hash"  # of its denoiser's weights as they were loaded; see `fingerprint`
_MOST_TAGS = 1000  # of each dataset


def of_run(trainer: Trainer) -> dict[str, str]:
    """What every file of a run says, whatever it holds."""
    given = {**_training(trainer), **_base(trainer), **_data(trainer)}
    fields = {"hcpdiff.version": hcpdiff.__version__, "hcpdiff.step": trainer.step, **trainer.metadata, **given}
    return {key: _text(value) for key, value in fields.items() if value is not None}


def of_model(trainer: Trainer, kind: str, title: str) -> dict[str, str]:
    """What is known of the model that something was trained for; nothing of a family that files do not know.

    Args:
        kind: see `metadata.model`.
        title: unless the config says another.
    """
    family, about = trainer.family, trainer.about
    if family.architecture is None:
        return {}
    config: Any = family.denoiser.config
    values = asdict(config) if is_dataclass(config) and not isinstance(config, type) else dict(cast("Any", config))
    prediction = getattr(family.process, "prediction", None)
    said = asdict(about) | {"title": about.title or title, "trigger_words": about.trigger_words or trainer.words.names}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    variant = metadata.variant(family.architecture, values, str(prediction))
    clip_skip, size = getattr(family, "clip_skip", 0), _largest_size(trainer)
    return metadata.model(variant, kind, date=date, prediction=prediction, clip_skip=clip_skip, resolution=size, **said)


def of_plugin(trainer: Trainer, name: str) -> dict[str, str]:
    """At which rates and with which options a plugin was trained."""
    spec, groups = trainer.plugins.specs[name], dict(named_groups(trainer.optimizer))
    rate = groups[name].get("initial_lr", groups[name]["lr"]) if name in groups else None
    parts = [spec.on] if isinstance(spec.on, str) else list(spec.on)
    fields = {
        "ss_learning_rate": rate,
        "ss_unet_lr": rate if any(not part.startswith("text_encoders") for part in parts) else None,
        "ss_text_encoder_lr": rate if any(part.startswith("text_encoders") for part in parts) else None,
        "ss_network_dropout": spec.options.get("dropout"),
        "ss_network_args": {key: value for key, value in spec.options.items() if _plain(value)},
    }
    return {key: _text(value) for key, value in fields.items() if value is not None}


def _training(trainer: Trainer) -> dict[str, Any]:
    settings = trainer.settings
    return {
        "ss_seed": trainer.seed,
        "ss_steps": trainer.step,
        "ss_max_train_steps": settings.steps,
        "ss_epoch": int(trainer.epoch),
        "ss_num_epochs": int(trainer.epoch),
        "ss_gradient_accumulation_steps": settings.accumulate,
        "ss_gradient_checkpointing": settings.gradient_checkpointing != "none",
        "ss_mixed_precision": {"fp32": "no"}.get(settings.precision, settings.precision),
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_optimizer": trainer.described["class"],
        "ss_lr_scheduler": _name(settings.schedule) or "constant",
        "ss_lr_warmup_steps": _option(settings.schedule, "warmup"),
        "ss_loss_type": _name(settings.loss) or "mse",
        "ss_min_snr_gamma": _option(settings.weighting, "gamma") if _name(settings.weighting) == "min_snr" else None,
        "ss_noise_offset": _option(settings.noise, "strength") if _name(settings.noise) == "offset" else None,
        "ss_training_started_at": trainer.started,
        "ss_training_finished_at": datetime.now(timezone.utc).timestamp(),
        "ss_clip_skip": getattr(trainer.family, "clip_skip", None),
    }


def _base(trainer: Trainer) -> dict[str, Any]:
    path = trainer.metadata.get(BASE)
    if path is None:
        return {}
    file = Path(path).expanduser()
    return metadata.base_hash(file) if file.is_file() else {"ss_sd_model_name": path}


def _data(trainer: Trainer) -> dict[str, Any]:
    """Of datasets whose length is known."""
    known = {name: dataset for name, dataset in trainer.datasets.items() if isinstance(dataset, Dataset)}
    if not known:
        return {}
    found = {name: summarize(dataset, epochs=1) for name, dataset in known.items()}
    words = {name: read_words(dataset).counts.most_common(_MOST_TAGS) for name, dataset in known.items()}
    return {
        "hcpdiff.data": {name: {"images": found[name].images, "hash": identity(d)} for name, d in known.items()},
        "ss_num_train_images": sum(summary.epochs[0].samples for summary in found.values()),
        "ss_num_reg_images": 0,
        "ss_num_batches_per_epoch": max(summary.epochs[0].batches for summary in found.values()),
        "ss_cache_latents": any(dataset.cache_latents for dataset in known.values()),
        "ss_caption_dropout_rate": max(_caption_dropout(dataset) for dataset in known.values()),
        "ss_datasets": [_dataset(name, dataset, found[name]) for name, dataset in known.items()],
        "ss_dataset_dirs": {name: {"n_repeats": s.repeats[1], "img_count": s.images} for name, s in found.items()},
        "ss_tag_frequency": {name: dict(counts) for name, counts in words.items()},
        "ss_bucket_info": {name: _buckets(summary) for name, summary in found.items()},
    }


def _dataset(name: str, dataset: Dataset, summary: Summary) -> dict[str, Any]:
    return {
        "name": name,
        "batch_size_per_device": dataset.batch_size,
        "num_train_images": summary.epochs[0].samples,
        "loss_weight": dataset.loss_weight,
    }


def _buckets(summary: Summary) -> dict[str, Any]:
    """Sizes as (width, height), as kohya's readers want them."""
    sizes = [{"resolution": [*reversed(bucket.size)], "count": bucket.samples} for bucket in summary.buckets]
    return {"buckets": dict(enumerate(sizes))}


def _caption_dropout(dataset: Dataset) -> float:
    """Of the transforms that empty a prompt, the most likely one."""
    return max((t.p for t in dataset.captioning.transforms if isinstance(t, CaptionDropout)), default=0.0)


def _largest_size(trainer: Trainer) -> tuple[int, int] | None:
    known = [dataset for dataset in trainer.datasets.values() if isinstance(dataset, Dataset)]
    sizes = [(height, width) for dataset in known for height, width in dataset.samples.targets]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _name(function: Any) -> str | None:
    while isinstance(function, partial):
        function = function.func
    return None if function is None else getattr(function, "__name__", type(function).__name__)


def _option(function: Any, name: str) -> Any:
    """What a function's argument is, given or by default; None if it has no such."""
    if function is None:
        return None
    given = inspect.signature(function).parameters.get(name)
    return None if given is None or given.default is given.empty else given.default


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _text(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
