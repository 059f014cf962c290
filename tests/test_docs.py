"""What the documents say is tried: configs, commands, Python, links, messages."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import save_file

from hcpdiff.cli import app
from hcpdiff.config import Config, check, load, to_yaml
from hcpdiff.config.stored import CONFIG

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What users have when they follow the documents: their pictures and prompts, and files that runs have left.
LORAS = ("lora", "mine", "lora_sd3")
LEFT_BY_RUNS = (*(f"exps/{name}/style.safetensors" for name in LORAS), "exps/controlnet/control.safetensors")
LEFT_BY_RUNS += ("exps/textual-inversion/my-toy.safetensors",)
MODELS = ("models/anime.safetensors",)
TINY = {  # {page of a family: what makes a small model of it}
    "sd": ("tiny_unet", "tiny_sd"),
    "sdxl": ("tiny_unet", "tiny_sdxl"),
    "sd3": ("tiny", "tiny_pipeline"),
    "flux": ("tiny_flux", "tiny_flux_pipeline"),
    "pixart": ("tiny_pixart", "tiny_pixart"),
    "zimage": ("tiny_zimage", "tiny_zimage"),
    "qwen_image": ("tiny_qwen", "tiny_qwen_image"),
}
OTHER_PROGRAMS = ("cd", ".", "pytest", "ruff", "pyright")  # and bash, python, pip, hcpdiff, whose files are looked at


@dataclass(frozen=True)
class Block:
    """A fenced block; the first line of a file's content is a comment with its name."""

    place: str
    language: str
    text: str

    @property
    def file(self) -> str:
        match = re.match(r"# (\S+)\n", self.text)
        assert match, f"{self.place}: the first line of this block should be a comment with the name of the file"
        return match[1]


def blocks(*languages: str) -> list[Block]:
    found = []
    for path in DOCS:
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(f"{path.relative_to(ROOT)}:{line}", match[1], match[2]))
    return [block for block in found if block.language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(place, words) of every command in blocks, and of every one in a text that is complete."""
    for block in blocks("sh"):
        for line in block.text.splitlines():
            for part in re.split(r"&&|;", line.partition("  #")[0]):
                if words := shlex.split(part, comments=True):
                    yield block.place, words
    for path in DOCS:
        for inline in re.findall(r"`(hcpdiff [a-z]+ [^`]+)`", path.read_text(encoding="utf-8")):
            yield path.name, shlex.split(inline)


MODULES = [block for block in blocks("python") if block.text.startswith("# ")]
COMMANDS = list(commands())


@cache
def of_a_run() -> str:
    """The config in the files that a run leaves."""
    return to_yaml(load("lora"), interpolations=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with all files that the documents show; the current one."""
    for block in (*blocks("yaml"), *MODULES):
        path = tmp_path / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    for name in (*LEFT_BY_RUNS, *MODELS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({}, tmp_path / name, {CONFIG: of_a_run()})
    (tmp_path / "prompts.txt").write_text("a red star\n", encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "my_pictures").symlink_to(ROOT / "examples" / "data" / "striped")
    for block in MODULES:
        monkeypatch.delitem(sys.modules, Path(block.file).stem, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(config: Config) -> list[str]:
    """Of a config; selectors are matched where the model comes with hcpdiff."""
    packaged = (config.get("model") or {}).get("path") == "hcpdiff/tiny-sd3"
    return [str(mistake) for mistake in check(config, selectors=packaged)]


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"{block.place} {block.file}")
def test_every_config_in_the_documents_is_right(block: Block, project: Path) -> None:
    assert mistakes(load(project / block.file, trust=[Path(b.file).stem for b in MODULES])) == []


@pytest.mark.parametrize("name", sorted(TINY))
def test_the_layers_for_a_lora_on_the_page_of_a_family_are_in_its_model(name: str, project: Path) -> None:
    from hcpdiff.plugins.targets import find_layers

    module, make = TINY[name]
    pipeline = getattr(importlib.import_module(f"tests.models.{module}"), make)()
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    parts = {"denoiser": denoiser, "text_encoders.clip": pipeline.text_encoder}
    plugins = load(project / f"cfgs/family_{name}_lora.yaml")["plugins"]
    assert "style" in plugins
    for plugin in plugins.values():
        assert find_layers(parts[plugin.get("on", "denoiser")], plugin["layers"])


def test_every_family_has_a_page_with_both_configs() -> None:
    files = {block.file for block in blocks("yaml")}
    pages = {path.stem for path in (ROOT / "docs" / "families").glob("*.md")} - {"adding"}
    assert pages == TINY.keys()
    assert {f"cfgs/family_{name}{end}.yaml" for name in pages for end in ("", "_lora")} <= files


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[f"{place} {' '.join(w)[:60]}" for place, w in COMMANDS])
def test_every_command_in_the_documents_works(place: str, words: list[str], project: Path) -> None:
    if words[:3] == ["python", "-m", "hcpdiff"]:
        words = words[2:]
    program, *arguments = words
    if program == "hcpdiff":
        _try_hcpdiff(arguments)
    elif program == "pip":
        _check_pip(arguments)
    elif program in ("python", "bash"):
        assert arguments[:2] == ["-m", "venv"] or (ROOT / arguments[0]).is_file(), f"{place}: {arguments}"
    else:
        assert program in OTHER_PROGRAMS, f"{place}: what is {program}?"


def _try_hcpdiff(arguments: list[str]) -> None:
    """Parse the command, and see that it would find a config without mistakes."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    values = group.commands[name].make_context(name, rest).params
    if "cfg" not in values:
        return
    assert values.get("prompts") is None or values["prompts"].is_file()
    config = load(values["cfg"], values.get("overrides") or (), values.get("trust") or ())
    assert mistakes(config) == []
    if name == "layers":
        _find_layers(config, values)


def _find_layers(config: Config, values: dict[str, Any]) -> None:
    from hcpdiff.config.selectors import skeleton
    from hcpdiff.plugins.targets import find_layers

    assert find_layers(skeleton(config, values["on"]), [values["pattern"] or "re:.+"])


def _check_pip(arguments: list[str]) -> None:
    """That the constraints and the extras are there."""
    assert arguments[0] == "install"
    if "-c" in arguments:
        assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()
    project_file = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project_file, re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_in_the_documents_runs(block: Block, project: Path) -> None:
    names: dict[str, object] = {"__name__": "a_document"}
    exec(compile(block.text, block.place, "exec"), names)
    assert names.keys() > {"__name__", "__builtins__"}, "it defines and imports nothing"


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        there = path if not file else path.parent / file
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert dead == []


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_message_in_the_concepts_is_what_a_user_sees(project: Path) -> None:
    text = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    message = re.search(r"^cfgs/\S+: (train\..*)$", text, re.MULTILINE)
    assert message
    (mistake,) = mistakes(load("cfgs/lora.yaml", ["train.optimizer.weight_decy=0.1"]))
    assert mistake.endswith(message[1])


def test_the_config_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("config_reference", ROOT / "scripts" / "config_reference.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == script.page(), "run python scripts/config_reference.py"


def test_the_readme_has_the_two_commands_of_a_fresh_clone() -> None:
    text = re.sub(r" +# .*", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "pip install -c constraints.txt -e . && hcpdiff train --cfg cfgs/lora.yaml\n" in text
    assert 'pip install -c constraints.txt -e ".[test]" && pytest\n' in text
