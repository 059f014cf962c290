"""SD3 on disk: the folder of diffusers' StableDiffusion3Pipeline, read part by part and written whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hcpdiff.models import vae, weights
from hcpdiff.models.hub import local_folder
from hcpdiff.models.sd3.transformer import MMDiT
from hcpdiff.models.text import clip, t5
from hcpdiff.models.text.loading import quiet
from hcpdiff.randomness import derive

CLIPS = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
ENCODERS = {**CLIPS, "t5": ("text_encoder_3", "tokenizer_3")}
CONFIGS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model"]
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


class SD3Folder:
    """The parts of one model.

    Args:
        path: folder, or owner/name on the hub.
        use_t5: False leaves the T5 unread.
        only_configs: download no weights, for skeletons.
    """

    def __init__(self, path: str | Path, *, revision: str | None, use_t5: bool, only_configs: bool = False) -> None:
        allow = CONFIGS if only_configs else [*CONFIGS, "*/*.safetensors"]
        ignore = ["*.fp16*", *([] if use_t5 else ["text_encoder_3/*", "tokenizer_3/*"])]
        self.root = local_folder(path, revision=revision, allow=allow, ignore=ignore)
        index = weights.read_json(self.root / "model_index.json")
        if index.get("_class_name") != "StableDiffusion3Pipeline":
            raise ValueError(f"{path}: this is a {index.get('_class_name')}; SD3 reads a StableDiffusion3Pipeline")
        third = self.root / ENCODERS["t5"][0]
        self.encoders = [*CLIPS, *(["t5"] if use_t5 and third.is_dir() and not t5.is_silent(third) else [])]

    def denoiser(self, dtype: torch.dtype, *, seed: int | None = None) -> MMDiT:
        """With the folder's weights or those of `seed`; positions are not learned, so the folder's are kept."""
        folder = self.root / "transformer"
        if seed is None:
            return MMDiT.from_pretrained(folder, dtype=dtype)
        with _seeded(seed, "denoiser"):
            model = MMDiT(MMDiT.skeleton(folder).config)
        if weights.present(folder):
            model.pos_embed.pos_embed.copy_(weights.read(folder)["pos_embed.pos_embed"])
        return model.to(dtype)

    def text_encoder(self, name: str, dtype: torch.dtype, *, seed: int | None = None) -> nn.Module:
        read = t5.read if name == "t5" else clip.read
        folder = self.root / ENCODERS[name][0]
        if seed is None:
            return read(folder, dtype)
        with _seeded(seed, name):
            return _spread(read(folder, dtype, weights=False)).to(dtype)

    def autoencoder(self, dtype: torch.dtype, *, seed: int | None = None) -> nn.Module:
        if seed is None:
            return vae.read(self.root / "vae", dtype)
        with _seeded(seed, "vae"):
            return vae.read(self.root / "vae", dtype, weights=False).to(dtype)

    def tokenizer(self, name: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.root / ENCODERS[name][1])

    def scheduler(self) -> dict[str, Any]:
        """The settings of the stock scheduler, whose `shift` says how far steps lean towards noise."""
        file = self.root / "scheduler" / "scheduler_config.json"
        return weights.read_json(file) if file.exists() else dict(SCHEDULER)

    def skeleton(self, part: str) -> nn.Module:
        """`part` by its path in the family, on the meta device; imports only what this part needs."""
        if part == "denoiser":
            return MMDiT.skeleton(self.root / "transformer")
        with weights.on_meta():
            if part == "vae":
                return vae.read(self.root / "vae", torch.float32, weights=False)
            if part == "text_encoders":
                return nn.ModuleDict({name: self.skeleton(f"{part}.{name}") for name in self.encoders})
            name = part.removeprefix("text_encoders.")
            if name in self.encoders:
                folder = self.root / ENCODERS[name][0]
                return t5.read(folder, torch.float32, weights=False) if name == "t5" else clip.skeleton(folder)
        known = ["denoiser", "vae", "text_encoders", *(f"text_encoders.{name}" for name in self.encoders)]
        raise ValueError(f"{part!r} is no part of SD3; its parts are {', '.join(known)}")


def write(
    folder: Path,
    denoiser: MMDiT,
    text_encoders: Mapping[str, Any],
    tokenizers: Mapping[str, Any],
    vae: Any,
    scheduler: Mapping[str, Any],
) -> None:
    """A folder that stock StableDiffusion3Pipeline.from_pretrained reads; a silent T5 stands in for a missing one."""
    encoders, tokenizers = dict(text_encoders), dict(tokenizers)
    if "t5" not in encoders:
        encoders["t5"], tokenizers["t5"] = t5.silent(denoiser.config.joint_attention_dim)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler.get("_class_name", SCHEDULER["_class_name"])],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
    }
    with _replacing(folder) as new, quiet():
        denoiser.save_pretrained(new / "transformer")
        vae.save_pretrained(new / "vae")
        weights.write_json(new / "scheduler" / "scheduler_config.json", scheduler)
        for name, (encoder, tokenizer) in ENCODERS.items():
            encoders[name].save_pretrained(new / encoder)
            tokenizers[name].save_pretrained(new / tokenizer)
            index[encoder] = ["transformers", type(encoders[name]).__name__]
            index[tokenizer] = ["transformers", type(tokenizers[name]).__name__]
        weights.write_json(new / "model_index.json", index)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder whose content then replaces that of `folder`, which the weights in use may be mapped from."""
    new = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    folder.mkdir(exist_ok=True)
    for item in new.iterdir():
        old = folder / item.name
        if old.is_dir():
            shutil.rmtree(old)
        item.replace(old)
    new.rmdir()


@contextmanager
def _seeded(seed: int, part: str) -> Iterator[None]:
    """Code that draws from torch's global generator draws by `seed` here, and leaves no trace."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "init", part))
        yield


def _spread(encoder: Any) -> nn.Module:
    """First weights at which a small text encoder learns fast: xavier, and tokens as far apart as their width allows.

    transformers' own are for large models: with them a small one starts nearly blind to its prompt.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    embeddings = encoder.get_input_embeddings().weight
    nn.init.normal_(embeddings, std=embeddings.shape[1] ** -0.5)
    return encoder
