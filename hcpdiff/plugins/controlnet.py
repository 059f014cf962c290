"""ControlNet for transformers like SD3's: copies of the first blocks read a control image and steer the others."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hcpdiff.plugins.base import MultiPluginBlock
from hcpdiff.plugins.loading import LoadReport, copy_all
from hcpdiff.plugins.plugin import PluginInputs
from hcpdiff.plugins.tree import clean_copy, unwrapped
from hcpdiff.plugins.values import Items

WEIGHTS = "diffusion_pytorch_model"


class ControlNet(MultiPluginBlock):
    """A copy of the model's first blocks, with the control image added to its input. What each of its blocks gives is
    added to the model's blocks, through layers that start at zero (arXiv:2302.05543).

    The step's inputs have `control_image`: (B, 3, H, W) in [0, 1], or latents (B, C, h, w) as diffusers wants them; or
    `control_image_latents`, the family's latents from a cache. A batch may be a
    multiple of B, as with guidance: images are repeated then. Weights have the names of diffusers' SD3ControlNetModel.

    Args:
        num_layers: how many blocks to copy; None is half of them.
        extra_channels: how many channels control latents have besides the model's, e.g. 1 for a mask.
        zero_pooled: zeros for the pooled text, and latents without the VAE's shift, as ControlNets of SD3 medium want.
        pretrained: a folder to start from, which also says the above.
    """

    from_layers = ("pre_hook:", "pre_hook:transformer_blocks.0")
    to_layers = (r"re:transformer_blocks\.\d+",)
    adjustable = True
    reads = ("control_image", "control_image_latents")

    def __init__(
        self,
        sources: Sequence[nn.Module],
        targets: Sequence[nn.Module],
        *,
        num_layers: int | None = None,
        extra_channels: int = 0,
        zero_pooled: bool = True,
        pretrained: str | Path | None = None,
    ) -> None:
        super().__init__()
        model = sources[0]
        config: dict[str, Any] = dataclasses.asdict(getattr(model, "config"))  # noqa: B009 (a model of any family)
        if pretrained is not None:
            pretrained = Path(pretrained).expanduser()
            given = _read_config(pretrained)
            num_layers, extra_channels = given["num_layers"], given["extra_conditioning_channels"]
            zero_pooled = given["force_zeros_for_pooled_projection"]
        blocks = [unwrapped(block) for block in model.get_submodule("transformer_blocks").children()]
        count = len(blocks) // 2 if num_layers is None else num_layers
        if not 1 <= count < len(blocks):
            raise ValueError(
                f"num_layers: {count} of {len(blocks)} blocks; copy at least 1, and all but the last at most"
            )
        self.zero_pooled, self.channels = zero_pooled, config["in_channels"] + extra_channels
        self.config = config | {
            "num_layers": count,
            "extra_conditioning_channels": extra_channels,
            "force_zeros_for_pooled_projection": zero_pooled,
        }
        self._names = [list(inspect.signature(layer.forward).parameters) for layer in sources]
        self._samples = [_sample_of(target, blocks, count) for target in targets]
        self._encoded: tuple[Tensor, Tensor] | None = None

        for name in ("pos_embed", "time_text_embed", "context_embedder"):
            self.add_module(name, clean_copy(model.get_submodule(name)))
        self.transformer_blocks = nn.ModuleList(clean_copy(block) for block in blocks[:count])
        width = self.get_submodule("context_embedder").get_parameter("weight").shape[0]
        self.controlnet_blocks = nn.ModuleList(_zero(nn.Linear(width, width)) for _ in range(count))
        self.pos_embed_input = nn.Module()
        self.pos_embed_input.proj = _zero(nn.Conv2d(self.channels, width, config["patch_size"], config["patch_size"]))
        self.float()
        if pretrained is not None:
            self.load_pretrained(pretrained)

    def prepare(self, inputs: PluginInputs, family: nn.Module) -> PluginInputs:
        """Encode the control image, once for as long as it is the same."""
        cached = inputs.tensors.get("control_image_latents")
        image = inputs.tensors.get("control_image") if cached is None else self._unshifted(cached, family)
        if image is None:
            raise ValueError(f"{self.where}: there is no control_image; give the data, or the request, a control image")
        if image.shape[1] == self.channels:
            return dataclasses.replace(inputs, tensors={**inputs.tensors, "control_image": image})
        if image.shape[1] != 3:
            raise ValueError(
                f"{self.where}: control_image has {image.shape[1]} channels; it must be an image with 3, "
                f"or latents with {self.channels}"
            )
        if self._encoded is None or self._encoded[0] is not image:
            self._encoded = image, self._encode(image, family)
        return dataclasses.replace(inputs, tensors={**inputs.tensors, "control_image": self._encoded[1]})

    def read(self, index: int, items: Items) -> dict[str, Any]:
        """All inputs of the model, and of its first block, by name."""
        return {self._names[index][key] if isinstance(key, int) else key: value for key, value in items.items()}

    def forward(self, sources: list[dict[str, Any]]) -> list[Tensor | None]:
        model, first = sources
        like: Tensor = model["noisy_latents"]
        weight = self.get_parameter("pos_embed_input.proj.weight")
        if weight.dtype == torch.float32 and like.dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(like.device.type, like.dtype):
                samples = self._run(model, first.get("bias"), like.dtype)
        else:
            samples = self._run(model, first.get("bias"), weight.dtype)
        return [None if i is None else samples[i] for i in self._samples]

    def write(self, index: int, value: Tensor, result: Tensor | None) -> Tensor:
        return value if result is None else value + result.to(value.dtype)

    def _run(self, model: dict[str, Any], bias: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
        """What is added to the blocks, (B, N, D) each."""
        latents, tokens, pooled = (model[name].to(dtype) for name in ("noisy_latents", "tokens", "pooled"))
        pooled = torch.zeros_like(pooled) if self.zero_pooled else pooled
        control = self.inputs.tensors["control_image"].to(latents)
        if len(latents) % len(control):
            raise ValueError(f"{self.where}: {len(control)} control images for a batch of {len(latents)}")
        control = control.repeat(len(latents) // len(control), 1, 1, 1)
        image = self.get_submodule("pos_embed")(latents)
        image = image + self.pos_embed_input.get_submodule("proj")(control).flatten(2).transpose(1, 2)
        text = self.get_submodule("context_embedder")(tokens)
        emb = F.silu(self.get_submodule("time_text_embed")(model["timesteps"], pooled))
        samples = []
        for block, out in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            image, text = block(image, text, emb, None if bias is None else bias.to(image.dtype))
            samples.append(out(image) * self.strength)
        return samples

    @torch.no_grad()
    def _encode(self, image: Tensor, family: Any) -> Tensor:
        return self._unshifted(family.encode_image(image * 2 - 1), family)

    def _unshifted(self, latents: Tensor, family: Any) -> Tensor:
        """The family's latents as this ControlNet wants them."""
        if not self.zero_pooled:
            return latents
        return latents + (family.vae.config.shift_factor or 0.0) * family.vae.config.scaling_factor

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that diffusers' SD3ControlNetModel.from_pretrained reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in self.state_dict().items()}
        save_file(state, folder / f"{WEIGHTS}.safetensors", {"format": "pt"})
        config = {"_class_name": "SD3ControlNetModel", **self.config, "pos_embed_type": "sincos", "use_pos_embed": True}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def load_pretrained(self, folder: str | Path) -> LoadReport:
        """Read such a folder.

        Raises:
            FileNotFoundError: it has no weights.
            ValueError: they do not fit this model and these options.
        """
        files = sorted(Path(folder).glob(f"{WEIGHTS}*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: there is no {WEIGHTS}.safetensors")
        state = {key: tensor for file in files for key, tensor in load_file(file).items()}
        return copy_all(self.state_dict(), state, where=str(folder))

    def file_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = {"num_layers": self.config["num_layers"], "zero_pooled": self.zero_pooled}
        return known | {"extra_channels": self.config["extra_conditioning_channels"]}


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _sample_of(target: nn.Module, blocks: Sequence[nn.Module], count: int) -> int | None:
    """Which of the copies steers a block; None for the last one, whose output leaves the model, as in diffusers."""
    index = next((i for i, block in enumerate(blocks) if block is target), None)
    if index is None:
        raise ValueError(f"to_layers: a {type(target).__name__} is none of the model's transformer_blocks")
    return None if index == len(blocks) - 1 else int(index / (len(blocks) / count))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: there is no config.json; is this a folder of diffusers' SD3ControlNetModel?"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("_class_name") != "SD3ControlNetModel" or config.get("use_pos_embed") is False:
        raise ValueError(f"{path}: only SD3ControlNetModel with its own positions can be attached")
    return config
