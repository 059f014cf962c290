"""What hcpdiff's own transformers share: files in diffusers' layout, checkpointing, compiling, first weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hcpdiff.formats.tensor_files.opening import read_json, write_json
from hcpdiff.models import weights
from hcpdiff.models.blank import on_meta
from hcpdiff.models.saving import save_part

if TYPE_CHECKING:
    from typing_extensions import Self


class TransformerConfig:
    """The base of the dataclasses that say the shape of a transformer, by the names of diffusers' config.json."""

    num_attention_heads: int
    attention_head_dim: int

    @property
    def dim(self) -> int:
        """The width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | None = None) -> Self:
        """From the content of a config.json; keys that start with an underscore are about the file, not the model."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if not k.startswith("_")}
        known = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
        if unknown := values.keys() - known:
            raise ValueError(f"{where or cls.__name__}: this transformer has no setting {', '.join(sorted(unknown))}")
        return cls(**values)


class Transformer(nn.Module, ABC):
    """Blocks that run one after another, made from a `config_class` and called `diffusers_class` by diffusers."""

    config_class: ClassVar[Any]
    diffusers_class: ClassVar[str]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def blocks(self) -> list[Any]:
        """All blocks, in the order in which they run."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype | None = None) -> Self:
        """Read diffusers' `transformer/` folder: config.json and safetensors, sharded or not.

        Raises:
            FileNotFoundError: config or weights are missing.
            ValueError: the weights do not fit the config.
        """
        return weights.load(cls.skeleton(folder), Path(folder), dtype=dtype)

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype | None) -> Self:
        """`from_pretrained`; with `dtype` None, every weight is as it is there."""
        return cls.from_pretrained(folder, dtype=dtype)

    @classmethod
    def random(cls, folder: Path) -> Self:
        """The same model with random weights."""
        return cls(cls._config(folder))

    @classmethod
    def skeleton(cls, folder: str | Path) -> Self:
        """The same model on the meta device, without reading weights."""
        with on_meta():
            return cls(cls._config(folder))

    @classmethod
    def blank(cls, folder: Path) -> Self:
        """The skeleton, as all that this model has is in its files."""
        return cls.skeleton(folder)

    @classmethod
    def _config(cls, folder: str | Path) -> Any:
        file = Path(folder) / "config.json"
        return cls.config_class.from_dict(read_json(file), str(file))

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, shard_size: str | int | None = None
    ) -> None:
        """Write a folder that this class and diffusers' read; see `saving.save_part`."""
        save_part(self, Path(folder), dtype=dtype, shard_size=shard_size)

    def save_config(self, folder: str | Path) -> None:
        """Write config.json alone."""
        values = {"_class_name": self.diffusers_class, **asdict(self.config)}
        write_json(Path(folder) / "config.json", values)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def gradient_checkpointing(self, mode: Literal["none", "all", "mlp"] | int) -> None:
        """What backward computes again instead of keeping it: nothing, all blocks, their MLPs, or every n-th block.

        "mlp" saves less than "all" and is faster. Plugins on these layers run again too.
        """
        valid = isinstance(mode, int) and not isinstance(mode, bool) and mode > 0
        if not valid and mode not in ("none", "all", "mlp"):
            raise ValueError(
                f"gradient_checkpointing: {mode!r} is no mode; use none, all, mlp, or n for every n-th block"
            )
        self._checkpoint_every = mode if isinstance(mode, int) else int(mode == "all")
        for block in self.blocks:
            block.checkpoint_mlp = mode == "mlp"

    def compile_blocks(self, **options: Any) -> None:
        """torch.compile each block in place: they share one graph, so it is ready sooner. Attach plugins before."""
        for block in self.blocks:
            block.compile(fullgraph=True, **options)

    def _run(self, i: int, block: nn.Module, *inputs: Tensor | None) -> Any:
        """What a block gives; it is computed again in backward if checkpointing says so."""
        if self._checkpoint_every and i % self._checkpoint_every == 0 and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _initialise(self, *zeros: type[nn.Module]) -> None:
        """Xavier's distribution and no biases; zeros in the linear layer of `zeros` and in `proj_out`."""
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.modules():
            if isinstance(layer, zeros):
                nn.init.zeros_(layer.get_parameter("linear.weight"))
        nn.init.zeros_(self.get_parameter("proj_out.weight"))
