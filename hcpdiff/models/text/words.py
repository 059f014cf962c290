"""Words that a model learns: Textual Inversion (arXiv:2208.01618) of several words with several vectors each."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hcpdiff.formats import word_files
from hcpdiff.formats.word_files import Format
from hcpdiff.models.family import ModelFamily
from hcpdiff.models.text.placeholders import check_free, first_new_id, substitute, with_words
from hcpdiff.randomness import generator

logger = logging.getLogger(__name__)
_MEASURED = 1000  # words of a text encoder by which it is known how strong their vectors are
_RANDOM = re.compile(r"\*\[\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*,\s*([0-9]+)\s*\]")


class Words(nn.Module):
    """Learned words of a model: `{text encoder: {word: (n, D)}}` float32 parameters, and nothing of the model.

    Once attached, `family.encode_prompt` reads them wherever a prompt names them, as all else of a prompt. An encoder
    for which a word has no vectors reads its name as text.

    Args:
        family: the model; its weights and embeddings are never changed.
        vectors: {word: {text encoder: (n, D)}}
    """

    def __init__(self, family: ModelFamily, vectors: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().__init__()
        self._model: Any = (family,)  # in a tuple, lest the family becomes a child
        self.names = list(vectors)
        for word, given in vectors.items():
            for encoder, tensor in given.items():
                check_free(word, self._family.tokenizers[encoder])
                _check_shape(word, encoder, tensor, width(self._family, encoder))
        if len({word.lower() for word in vectors}) != len(vectors):
            raise ValueError(f"words: {', '.join(vectors)}: names that differ in case alone are one name")
        self.vectors = nn.ModuleDict({
            encoder: nn.ParameterDict({
                _key(word): nn.Parameter(given[encoder].detach().float().clone())
                for word, given in vectors.items()
                if encoder in given
            })
            for encoder in self._family.text_encoders
        })  # fmt: skip
        self._undo: list[Callable[[], None]] = []
        self._tokenizers: dict[str, tuple[Any, Any]] = {}  # {encoder: (without the words, with them)}

    @classmethod
    def create(cls, family: ModelFamily, words: Mapping[str, str], *, seed: int = 0) -> Words:
        """New words in every text encoder of a family.

        Args:
            words: {word: what it starts from}: `cat` is a copy of that word's vectors, `*[0.02, 2]` two vectors of
                normal noise with a standard deviation of 0.02, and `cat, *[0.02, 2], tail` one after the other. Commas
                only separate.
            seed: of the noise.

        Raises:
            ValueError: a name or what it starts from is wrong.
        """
        encoders = list(family.text_encoders)
        return cls(
            family, {w: {e: vectors_of(family, e, w, text, seed=seed) for e in encoders} for w, text in words.items()}
        )

    def of(self, word: str) -> dict[str, nn.Parameter]:
        """{text encoder: (n, D)} of one word."""
        key = _key(word)
        return {encoder: words[key] for encoder, words in self._by_encoder().items() if key in words}

    @property
    def trained(self) -> list[str]:
        """Those with a vector that learns."""
        return [word for word in self.names if any(p.requires_grad for p in self.of(word).values())]

    def attach(self) -> Words:
        """Let the family read these words, and return them.

        Raises:
            ValueError: they are attached already, or words of the same names are.
        """
        if self._tokenizers:
            raise ValueError(f"words: {', '.join(self.names)}: attached already")
        family, by_encoder = self._family, self._by_encoder()
        for encoder, words in by_encoder.items():
            for word in self.names:
                if _key(word) in words:
                    check_free(word, family.tokenizers[encoder])
        for encoder, words in by_encoder.items():
            counts = {word: len(words[_key(word)]) for word in self.names if _key(word) in words}
            if not counts:
                continue
            before = family.tokenizers[encoder]
            vectors = [words[_key(word)] for word in counts]
            self._undo.append(substitute(family.text_encoders[encoder], vectors, len(before)))
            self._tokenizers[encoder] = before, with_words(before, counts)
            family.tokenizers[encoder] = self._tokenizers[encoder][1]
        return self

    def detach(self) -> None:
        """Undo `attach`: the family is as it was.

        Raises:
            ValueError: they are not attached, or words that were attached later still are.
        """
        if not self._tokenizers:
            raise ValueError(f"words: {', '.join(self.names)}: not attached")
        tokenizers = self._family.tokenizers
        if any(tokenizers[encoder] is not learned for encoder, (_, learned) in self._tokenizers.items()):
            raise ValueError(f"words: {', '.join(self.names)}: first detach those that were attached later")
        tokenizers |= {encoder: before for encoder, (before, _) in self._tokenizers.items()}
        for undo in self._undo:
            undo()
        self._undo, self._tokenizers = [], {}

    def seen_in(self, texts: Sequence[str]) -> set[str]:
        """Which of the words some texts have, as a tokenizer finds them. They have to be attached."""
        found: set[str] = set()
        for encoder, (before, _) in self._tokenizers.items():
            tokenizer, first = self._family.tokenizers[encoder], len(before)
            counts = {word: len(vectors[encoder]) for word in self.names if encoder in (vectors := self.of(word))}
            owners = [word for word, count in counts.items() for _ in range(count)]
            for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
                found |= {owners[i - first] for i in ids if first <= i < first + len(owners)}
        return found

    def save(self, path: str | Path, format: Format = "kohya") -> list[Path]:
        """Write the words, and say where to.

        Args:
            path: a folder for a file per word, named like it; or the file itself, of the only word or a "bundle".
            format: what reads it: "kohya" kohya, ComfyUI and the web UI; "onetrainer"; "a1111" the web UI, a .pt;
                "diffusers", whose `load_textual_inversion` takes a file for each text encoder; "bundle" all words in
                one file, as they are added to a LoRA's.
        """
        return word_files.write({word: self.of(word) for word in self.names}, Path(path), format)

    def bundled(self) -> dict[str, Tensor]:
        """The words as a LoRA's file has them beside its own tensors."""
        return word_files.bundle({word: self.of(word) for word in self.names})

    @property
    def _family(self) -> Any:
        return self._model[0]

    def _by_encoder(self) -> dict[str, Any]:
        return dict(self.vectors.items())


def load_words(family: ModelFamily, source: str | Path | Mapping[str, str | Path | Sequence[str | Path]]) -> Words:
    """Read words from files of any format of `Words.save`, LoRAs with words in them included; attach them to use them.

    Args:
        source: a file or a folder of files, each with the words that it names, or else one of its own name; or
            {word: its file, or the files for its text encoders}.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file has no words, or none for this model.
    """
    if not isinstance(source, Mapping):
        files = word_files.in_folder(Path(source).expanduser())
        read = [(name, found) for file in files for name, found in word_files.read(file).items()]
    else:
        read = []
        for word, given in source.items():
            for file in [given] if isinstance(given, (str, Path)) else given:
                read.append((word, word_files.read_one(Path(file).expanduser(), word)))
    vectors: dict[str, dict[str, Tensor]] = {}
    for word, found in read:
        placed = _placed(family, word, found)
        if double := sorted(placed.keys() & vectors.get(word, {}).keys()):
            raise ValueError(f"words.{word}: several files have vectors for {double[0]}; use one of them")
        vectors.setdefault(word, {}).update(placed)
    for word, given in vectors.items():
        if lacking := [encoder for encoder in family.text_encoders if encoder not in given]:
            logger.warning("words.%s: no vectors for %s, which reads the name as text", word, " and ".join(lacking))
    return Words(family, vectors)


def width(family: Any, encoder: str) -> int:
    """How wide the vectors of a text encoder are."""
    return family.text_encoders[encoder].get_input_embeddings().weight.shape[1]


def _placed(family: ModelFamily, word: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors by the family's text encoders, of a file that may call them otherwise or not say which they are for."""
    widths = {encoder: width(family, encoder) for encoder in family.text_encoders}
    placed: dict[str, Tensor] = {}
    for name, tensor in found.items():
        fitting = [encoder for encoder, wide in widths.items() if wide == tensor.shape[-1]]
        if name in widths:
            placed[name] = tensor
        elif len(fitting) == 1 and (not name or len(widths) == 1):
            placed[fitting[0]] = tensor
        elif name and len(found) > 1:
            logger.warning("words.%s: its vectors for %s have no text encoder here", word, name)
        else:
            known = ", ".join(f"{encoder} {wide}" for encoder, wide in widths.items())
            raise ValueError(f"words.{word}: vectors {tensor.shape[-1]} wide fit none or several of {known}")
    if not placed:
        raise ValueError(f"words.{word}: has vectors for {', '.join(found)}; the model has {', '.join(widths)}")
    return placed


def vectors_of(
    family: Any, encoder: str, word: str, text: str | None, *, seed: int, count: int | None = None
) -> Tensor:
    """The first vectors of a word for a text encoder, (n, D).

    Args:
        text: what it starts from; see `Words.create`. None is noise as strong as the vectors of the encoder's words.
        count: how many vectors: of more the first, and fewer are repeated in turn. None takes as many as `text` makes.
    """
    table = family.text_encoders[encoder].get_input_embeddings().weight.detach()
    if text is None:
        some = table[:: max(1, len(table) // _MEASURED)].float()
        text = f"*[{some.std().item():.9f}, {count or 1}]"
    tokenizer, noise = family.tokenizers[encoder], generator(seed, "words", word, encoder)
    pieces = [*_RANDOM.split(text), "0", "0"]  # text, standard deviation, number, text ...
    parts: list[Tensor] = []
    for piece, std, number in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if "*[" in piece:
            raise ValueError(f"words.{word}: {piece.strip()!r} is no noise; use e.g. '*[0.02, 2]'")
        ids = tokenizer(piece.replace(",", " "), add_special_tokens=False).input_ids
        if max(ids, default=0) >= first_new_id(tokenizer):
            raise ValueError(f"words.{word}: {piece.strip()!r} has a learned word in it; detach that first")
        parts.append(table[torch.tensor(ids, dtype=torch.long, device=table.device)].float().cpu())
        parts.append(torch.randn(int(number), table.shape[1], generator=noise) * float(std))
    vectors = torch.cat(parts)
    if not len(vectors):
        raise ValueError(f"words.{word}: {text!r} makes no vector; use a text such as 'cat', or '*[0.02, 2]'")
    return resized(vectors, count)


def resized(vectors: Tensor, count: int | None) -> Tensor:
    """So many vectors: of more the first, and fewer are repeated in turn; None is all."""
    return vectors if count is None else vectors[torch.arange(count) % len(vectors)]


def _check_shape(word: str, encoder: str, tensor: Tensor, wide: int) -> None:
    if tensor.ndim != 2 or not len(tensor) or tensor.shape[1] != wide:
        shape = tuple(tensor.shape)
        raise ValueError(f"words.{word}: the vectors for {encoder} have shape {shape}; they should have (n, {wide})")


def _key(word: str) -> str:
    """A word as the name of a parameter, which has no dots and is no name of Python's."""
    return f"<{word}>".replace(".", "\N{ONE DOT LEADER}")
