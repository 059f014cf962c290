"""Write docs/config.md, the reference of every key of a config, from signatures, docstrings and comments.

python scripts/config_reference.py            # write it
python scripts/config_reference.py --check    # say whether the committed file is up to date
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hcpdiff.config.kinds import LISTS, MAPPINGS, anything, bare, call_arity, describe, members, origin_of, written
from hcpdiff.config.ranges import Range
from hcpdiff.config.sections import SECTIONS
from hcpdiff.config.signatures import signature

FILE = Path(__file__).resolve().parent.parent / "docs" / "config.md"

INTRO = """# Config reference

This page is made by `python scripts/config_reference.py` from the code; a test keeps it up to date. How a config is put
together (defaults lists, overrides, `_target_`, `${{...}}`) is in [concepts](concepts.md#config).

A config has these sections. Each is needed only by the runs that use it; a section or key that is not on this page is a
mistake, which `hcpdiff check` names.

| section | what it is |
|---|---|
{sections}

In the tables below `-` means that the key must be given, and `null` that the text says what happens without it. Where
the type is *target*, the value is `{{_target_: path, key: value ...}}`. The targets that come with hcpdiff are listed
after the table; any class or function of the same kind works, your own too.
"""
ABOUT = {
    "name": "Of the run. `exp_dir` uses it.",
    "about": "What the files of a run say of it to people: [`about`](#about).",
    "exp_dir": "Where a run writes everything; default `exps/<name>`.",
    "seed": "Decides every random choice of a run. Default 0.",
    "model": "The base model: [`model`](#model).",
    "data": "Datasets, each with a name of your choice: [`data.<name>`](#data).",
    "plugins": "Adapters on the model, each with a name of your choice: [`plugins.<name>`](#plugins).",
    "words": "Words that the text encoders learn, by their names: [`words.<word>`](#words).",
    "finetune": "A list of groups of the model's own layers to train: [`finetune`](#finetune).",
    "train": "How to train: [`train`](#train).",
    "infer": "Which pictures to make: [`infer`](#infer).",
    "merge": "Which models and adapters to make one of: [`merge`](#merge).",
}
LIKE = {"TarStream": "WebDatasetSource", "HuggingFaceStream": "HuggingFaceSource"}  # whose docstring says the rest
FAMILIES = ("SD3", "Flux", "SDXL", "StableDiffusion", "PixArtSigma", "ZImage", "QwenImage")
GIVEN = {"generator", "generators", "callback"}  # arguments that hcpdiff gives by name
LINKS = {
    "EmaSettings": "[group](#trainema)",
    "ExportSettings": "[group](#trainexport)",
    "PreviewSettings": "[group](#trainpreview)",
    "Request": "[request](#infer)",
    "Prompt": "{positive, negative}",
    "Adapter": "[group](#inferadaptersname)",
    "MergePart": "[group](#mergepartsname)",
    "MergeAdapter": "[group](#mergeadaptersname)",
}
# What a name alone says well enough in the code, but not on this page.
SAID_HERE = {
    **{f"{family}.dtype": "Of the denoiser's weights, e.g. `bfloat16`: half the memory." for family in FAMILIES},
    **{f"{family}.vae_dtype": "Of the VAE's weights." for family in FAMILIES},
    "SD3.t5_tokens": "How many tokens the T5 gives; without a T5 the model is shown as many zeros.",
    "SD3.compact_t5": "Without a T5, give those zeros as one token that counts for all: the same result, and faster.",
    "PluginSpec.to_layers": "For these kinds: where the values go.",
    "PluginSpec.train": "False attaches the plugin and leaves it as it is.",
    "About.author": "Your name.",
    "About.description": "What it makes.",
    "About.license": "Of the file, e.g. CC-BY-4.0.",
    "About.tags": "What it is about.",
    "LayerGroup.layers": "Selectors inside that part; `''` is all of it.",
    "TrainSettings.steps": "When the run ends.",
    "TrainSettings.max_grad_norm": "Longer gradients are scaled down to this norm; null: never.",
    "TrainSettings.optimizer": "Any class of `torch.optim` but LBFGS, or one of [these](#optimizers).",
    "TrainSettings.ema": "Keep a moving average of the trained weights.",
    "TrainSettings.log_every": "How often numbers are fetched from the device and written; every step is in them.",
    "TrainSettings.preview": "Make pictures as the run goes.",
    "TrainSettings.callbacks": "Objects of your own subclasses of `hcpdiff.train.Callback`.",
    "EmaSettings.decay": "Near 1: an average over about 1 / (1 - decay) steps.",
    "PreviewSettings.every": "Steps between two previews; one more comes at the end.",
    "PreviewSettings.requests": "What to draw; each makes a row of the sheet.",
    "WandB.name": "Of the run there; default: the name of the run's folder.",
    "InferSettings.prompts": "What to draw.",
    "InferSettings.steps": "Steps of the sampler: more is finer and slower.",
    "InferSettings.seed": "Of the first picture of each prompt.",
    "InferSettings.images_per_prompt": "How many pictures of each prompt, with the seeds seed, seed + 1 ...",
    "InferSettings.batch_size": "Pictures made at once; changes memory and speed, not the pictures.",
    "InferSettings.adapters": "Trained plugins to attach, each with a name of your choice.",
    "InferSettings.words": "A folder of learned words, each called like its file, or a file; or {word: its file, or a "
    "list with one for each text encoder}. Words within an adapter's file come with it.",
    "WordSpec.path": "Start from a file of any program instead; or from one for each text encoder.",
    "InferSettings.out": "Folder for the pictures; nothing in it is overwritten but `sheet.png`.",
    "Adapter.path": "The file that training wrote.",
    "Adapter.strength": "0 is off, 1 is as trained.",
}


def exported(names: str) -> Iterator[str]:
    """The targets of hcpdiff.data with these names."""
    from hcpdiff import data

    for name in names.split():
        yield target(f"hcpdiff.data.{name}", getattr(data, name))


def pages() -> Iterator[str]:
    """The page, part by part."""
    from hcpdiff import models
    from hcpdiff.data import dataset
    from hcpdiff.diffusion import guidance, losses, noise, samplers, timesteps, weights
    from hcpdiff.infer.request import Adapter, InferSettings, Request
    from hcpdiff.plugins import ControlNet, DoRA, LoHa, LoKr, LoRA, PluginSpec
    from hcpdiff.tools.settings import MergeAdapter, MergePart, MergeSettings
    from hcpdiff.train import loggers, optimizers, schedules, settings
    from hcpdiff.train.words import WordSpec

    unknown = SECTIONS.keys() - ABOUT.keys()
    assert not unknown, f"say what the sections {unknown} are"
    yield INTRO.format(sections="\n".join(f"| `{name}` | {ABOUT[name]} |" for name in SECTIONS))

    yield "## model\n\nOne target: a family's `from_pretrained`. `model: sd3` and the like in a defaults list do it."
    for family in FAMILIES:
        yield target(f"hcpdiff.models.{family}.from_pretrained", getattr(models, family).from_pretrained)

    yield "## data\n\n" + keys("data.<name>", dataset.Dataset)
    yield "### Sources\n\nFor `source`; [Data](data.md) shows them in use."
    yield from exported("FolderSource ClassFolderSource TableSource HuggingFaceSource WebDatasetSource PairSource")
    yield from exported("PromptSource Scenes")
    yield "### Caption readers\n\nFor `captions` of a source."
    yield from exported("SidecarCaptions TableCaptions FilenameCaptions FirstCaptions")
    yield "### Buckets\n\nFor `bucket`."
    yield from exported("RatioBucket RatioGridBucket FixedBucket SizeBucket RatioSizeBucket LongEdgeBucket")
    yield "### Caption transforms\n\nFor the list `caption_transforms`."
    yield from exported("TagShuffle TagDropout TagErase SentenceDropout CaptionDropout Trigger Prefix Suffix Wildcards")
    yield from exported("TemplateFill")
    yield "### Streams\n\nA dataset of unknown length: `data.<name>` with this `_target_`."
    yield from exported("StreamDataset TarStream HuggingFaceStream")

    yield (
        "## plugins\n\nEach entry has a `_target_`, these keys, and the options of its class beside them; "
        "[plugins](plugins.md) explains them."
    )
    yield keys("plugins.<name>", PluginSpec, leave_out=("plugin", "options"))
    for plugin in (LoRA, DoRA, LoHa, LoKr):
        yield target(f"hcpdiff.plugins.{plugin.__name__}", plugin, given=1)
    yield target("hcpdiff.plugins.ControlNet", ControlNet, given=2)

    yield "## about\n\n" + keys("about", settings.About)
    yield "## words\n\n" + keys("words.<word>", WordSpec) + "\n\n[Words](words.md) shows them in use."

    yield "## finetune\n\n" + keys("finetune[i]", settings.LayerGroup)

    yield "## train\n\n" + keys("train", settings.TrainSettings)
    yield keys("train.ema", settings.EmaSettings, "###")
    yield keys("train.export", settings.ExportSettings, "###")
    yield keys("train.preview", settings.PreviewSettings, "###")
    yield "The keys of a request are under [infer](#infer)."
    yield "### Optimizers\n\nFor `train.optimizer`: any class of `torch.optim` but LBFGS, or"
    yield target("hcpdiff.train.optimizers.Muon", optimizers.Muon, given=1)
    yield listed(
        "Schedules",
        "train.schedule",
        schedules,
        "optimizer",
        "any class of `torch.optim.lr_scheduler` but ReduceLROnPlateau, or",
    )
    yield listed("Timesteps", "train.timesteps", timesteps, "count")
    yield listed("Noise", "train.noise", noise, "latents")
    yield listed("Losses", "train.loss", losses, "model_pred")
    yield listed("Weightings", "train.weighting", weights, "timesteps")
    yield listed("Guidance", "train.guidance", guidance, "timesteps", "a number, or a function of the timestep.")
    yield "### Loggers\n\nFor the list `train.loggers`; `metrics.jsonl` is written in any case."
    yield target("hcpdiff.train.TensorBoard", loggers.TensorBoard)
    yield target("hcpdiff.train.WandB", loggers.WandB)

    yield "## infer\n\n" + keys("infer", InferSettings)
    more = [f"`{name}`" for name in names(InferSettings) if name not in names(Request)]
    yield f"Requests in `train.preview.requests` have the same keys but for {', '.join(more[:-1])} and {more[-1]}."
    yield keys("infer.adapters.<name>", Adapter, "###")
    yield listed("Combining predictions", "infer.combine", guidance, "pred_negative")
    yield listed("Samplers", "infer.sampler", samplers, "predict")
    yield listed("Spacings", "infer.spacing", timesteps, "num_steps")

    yield "## merge\n\n" + keys("merge", MergeSettings)
    yield keys("merge.parts.<name>", MergePart, "###")
    yield keys("merge.adapters.<name>", MergeAdapter, "###")


def keys(name: str, receiver: Any, level: str = "", *, leave_out: tuple[str, ...] = ()) -> str:
    """A table of the keys of a section."""
    heading = f"{level} `{name}`\n\n" if level else ""
    return f"{heading}{summary(receiver)}\n\n{table(receiver, leave_out=leave_out)}"


def target(path: str, receiver: Any, *, given: int = 0) -> str:
    """A class or function to name by `_target_`; its first `given` arguments come from hcpdiff."""
    leave_out = tuple(a.name for a in signature(receiver).positional[:given])
    arguments = table(receiver, leave_out=leave_out)
    return f"#### `{path}`\n\n{summary(receiver)}" + (f"\n\n{arguments}" if arguments else "\n\nNo settings.")


def listed(title: str, key: str, module: Any, first: str, also: str = "") -> str:
    """The functions of a module whose first argument has this name, with the settings of each."""
    rows = []
    for name, function in functions(module, first):
        settings = [
            f"`{a.name}`: {words(a.annotation)}" + ("" if a.required else f", default `{shown(a.default)}`")
            for a in signature(function).arguments.values()
            if not a.by_position and a.name not in GIVEN
        ]
        rows.append(f"| `{module.__name__}.{name}` | {cell(summary(function))} | {'<br>'.join(settings) or 'none'} |")
    what = also or "one of these, or a function of your own with the same first arguments."
    return f"### {title}\n\nFor `{key}`: {what}\n\n" + "\n".join(
        ["| `_target_` | what it does | settings |", "|---|---|---|", *rows]
    )


def functions(module: Any, first: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions of a module by whose first argument one knows what they are for."""
    exported = getattr(module, "__all__", None) or list(vars(module))
    for name in exported:
        found = getattr(module, name)
        if name.startswith("_") or not inspect.isfunction(found):
            continue
        if next(iter(inspect.signature(found).parameters), None) == first:
            yield name, found


def table(receiver: Any, *, leave_out: tuple[str, ...] = ()) -> str:
    meanings = notes(receiver)
    rows = []
    for argument in signature(receiver).arguments.values():
        if argument.name in leave_out or argument.name in GIVEN:
            continue
        escaped = shown(argument.default).replace("|", "\\|")
        default = "-" if argument.required else f"`{escaped}`"
        if argument.name not in meanings:
            raise ValueError(f"{receiver.__qualname__}: say in its docstring what {argument.name!r} means")
        text = cell(meanings[argument.name])
        rows.append(f"| `{argument.name}` | {words(argument.annotation)} | {default} | {text} |")
    return "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) if rows else ""


def names(receiver: Any) -> list[str]:
    return list(signature(receiver).arguments)


def words(annotation: Any) -> str:
    """A type as short as a table wants it, with its range."""
    options = [option for option in members(annotation) if option is not type(None)]
    if str in options:  # written as text then
        options = [option for option in options if origin_of(option) is not torch.dtype]
    return " or ".join(dict.fromkeys(_word(option) for option in options))


def _word(annotation: Any) -> str:
    inner, marks = bare(annotation)
    limits = "".join(f", {mark}" for mark in marks if isinstance(mark, Range))
    if anything(annotation):
        return "any"
    origin = origin_of(annotation)
    arguments = getattr(inner, "__args__", ())
    if origin in LISTS and arguments and origin is not tuple:
        inside = words(arguments[0])
        return "list" if inside == "any" else f"list of {inside}"
    if origin is tuple:
        return describe(annotation).removeprefix("a ")
    if origin in MAPPINGS and len(arguments) == 2 and dataclasses.is_dataclass(arguments[1]):
        return f"names, each with a {words(arguments[1])}"
    if call_arity(annotation) is not None or (inspect.isclass(origin) and origin.__module__.startswith("hcpdiff")):
        return LINKS.get(origin.__name__, "target")
    text = describe(annotation).replace("true or false", "true, false").removeprefix("a ")
    return f"{text}{limits}".replace("|", "\\|")


def shown(default: Any) -> str:
    """A default as YAML has it."""
    if default is dataclasses.MISSING or default is inspect.Parameter.empty:
        return ""
    if repr(default) == "<factory>":
        return "empty"
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(shown, default))}]"
    if default == "":
        return "''"
    return written(default)


def summary(receiver: Any) -> str:
    """The docstring up to its sections, on one line per paragraph; what is indented is YAML."""
    text = re.split(r"\n(?:Args|Returns|Raises|Source)\b", inspect.getdoc(receiver) or "")[0]
    if dataclasses.is_dataclass(receiver) and text.startswith(f"{receiver.__name__}("):
        return ""
    paragraphs = [
        f"```text\n{inspect.cleandoc(part)}\n```" if part.startswith("    ") else " ".join(part.split())
        for part in text.strip().split("\n\n")
    ]
    return "\n\n".join(part for part in paragraphs if not part.endswith(":"))


def notes(receiver: Any) -> dict[str, str]:
    """What is said of each argument: in the docstring's Args, or in comments at the fields of a dataclass."""
    owner = getattr(receiver, "__self__", receiver).__name__
    found = {key.partition(".")[2]: text for key, text in SAID_HERE.items() if key.partition(".")[0] == owner}
    if owner in LIKE:
        from hcpdiff import data

        found |= in_docstring(inspect.getdoc(getattr(data, LIKE[owner])) or "")
    found |= in_docstring(inspect.getdoc(receiver) or "")
    if inspect.isclass(receiver) and dataclasses.is_dataclass(receiver):
        for cls in reversed(receiver.__mro__):
            if dataclasses.is_dataclass(cls):
                found |= in_comments(cls)
    return found


def in_docstring(text: str) -> dict[str, str]:
    match = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    current: list[str] = []
    for line in match[1].splitlines() if match else []:
        entry = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if entry:
            current = entry[1].split(", ")
            found |= dict.fromkeys(current, entry[2].strip())
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
    return found


def in_comments(cls: type) -> dict[str, str]:
    """Comments behind a field, or else on the lines above it."""
    source = inspect.getsource(cls)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines, found = source.splitlines(), {}
    for number, line in enumerate(lines, 1):
        field = re.match(r" {4}(\w+): ", line)
        if not field or field[1] not in inspect.get_annotations(cls):
            continue
        above, before = [], number - 1
        while before in comments and lines[before - 1].lstrip().startswith("#"):
            above.insert(0, comments[before])
            before -= 1
        if text := comments.get(number) or " ".join(above):
            found[field[1]] = text
    return found


def cell(text: str) -> str:
    """Text that a table can hold: in YAML's words, a sentence with a capital letter if it begins with words."""
    text = " ".join(text.split()).replace("|", "\\|").replace("; arguments as `euler`", "")
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"(?<![\w`]){python}\b", f"`{yaml}`", text)
    text = text if text.endswith((".", ")", "`", "...")) or not text else f"{text}."
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[,:]? [a-zA-Z`]", text) else text


def page() -> str:
    text = "\n\n".join(part.strip() for part in pages()) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/config.md from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    new = page()
    if parser.parse_args().check:
        same = FILE.is_file() and FILE.read_text(encoding="utf-8") == new
        print("up to date" if same else f"{FILE.name} is out of date: run python scripts/config_reference.py")
        return 0 if same else 1
    FILE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
