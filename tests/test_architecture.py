"""Who may import whom, and other promises about the shape of the code that a reader relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "hcpdiff").rglob("*.py"))
LONGEST = 350  # lines: beyond this a file is more than one concept

# What each part of hcpdiff may import of the others, inside functions too; `_target_` strings of configs do not count.
BASE = {"lazy", "randomness", "types", "config.ranges"}  # ranges: what signatures say about their values
MAY_IMPORT = {
    "lazy": set(),
    "randomness": set(),
    "types": {"randomness"},
    "config": {"lazy", "randomness"},
    "formats": {"lazy"},
    "data": BASE,
    "diffusion": BASE,
    "plugins": BASE | {"formats"},
    "models": BASE | {"diffusion", "formats"},
    "infer": BASE | {"config", "data", "diffusion", "formats", "models", "plugins"},
    "train": BASE | {"config", "data", "diffusion", "formats", "models", "plugins", "infer"},
    # Of models only where they are on disk; of plugins only how layers are named.
    "tools": BASE | {"config", "formats", "models.hub", "plugins.targets"},
    "project": set(),
    "cli": {"config", "formats", "infer", "models", "train", "plugins", "project", "tools"},
    "__main__": {"cli"},
    "__init__": {"lazy", "config", "infer", "train"},
}
# Where a package from outside may be imported; torch, numpy and PIL may be anywhere but where nothing heavy belongs.
HOMES = {
    "diffusers": {"models", "formats"},
    "transformers": {"models", "formats"},
    "accelerate": {"train"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "typer": {"cli"},
    "peft": {"formats", "plugins"},
    "albumentations": {"data"},
}


def name_of(path: Path) -> str:
    """`config.ranges` for hcpdiff/config/ranges.py, `config` for hcpdiff/config/__init__.py."""
    name = ".".join(path.relative_to(ROOT / "hcpdiff").with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, at the top or in functions, `a.b` for `from a import b` as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(params=FILES, ids=name_of)
def file(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_parts_import_only_what_stands_below_them(file: Path) -> None:
    part = name_of(file).split(".")[0]
    assert part in MAY_IMPORT, f"{part} is a new part: say here what it may import"
    for module in imports(file):
        if module == "hcpdiff" or not module.startswith("hcpdiff."):
            continue
        other = module.removeprefix("hcpdiff.")
        allowed = MAY_IMPORT[part] | {part}
        assert any(other == name or other.startswith(f"{name}.") for name in allowed), f"{part} imports {other}"


def test_packages_from_outside_are_imported_in_their_home_only(file: Path) -> None:
    part = name_of(file).split(".")[0]
    for module in imports(file):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or part in homes, f"{part} imports {module}"


def test_nothing_is_swallowed(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body)
            assert not (broad and empty), f"line {node.lineno}: an error of any kind is swallowed"


def test_public_things_have_docstrings(file: Path) -> None:
    """Methods that override one with a docstring, and short ones whose name says it, need none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public = [n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")]
    missing = [node.name for node in public if not ast.get_docstring(node)]
    assert not missing
    assert file.name == "__main__.py" or not tree.body or ast.get_docstring(tree), "the module says nothing of itself"


def test_files_are_one_concept_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_no_module_is_named_after_nothing() -> None:
    names = {part for file in FILES for part in name_of(file).split(".")}
    assert not names & {"utils", "util", "common", "core", "helpers", "misc"}


@pytest.mark.parametrize(
    "code",
    [
        "import hcpdiff",
        "import hcpdiff; dir(hcpdiff)",
        "from hcpdiff import cli; cli.main(['--help'])",
        "from hcpdiff import cli; cli.main(['train', '--help'])",
        "from hcpdiff import cli; cli.main(['show', '--cfg', 'cfgs/lora.yaml'])",
        "from hcpdiff import cli; cli.main(['check', '--cfg', 'nope.yaml'])",
    ],
)
def test_nothing_heavy_is_imported_for_nothing(code: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "accelerate", "numpy", "PIL")
    print_them = f"; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + print_them], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("code", ["import hcpdiff", "from hcpdiff import cli; cli.main(['--help'])"])
def test_starting_takes_less_than_three_tenths_of_a_second(code: str) -> None:
    """CPU time, the best of five, which other work on the machine changes little."""
    measured = f"{code}\nimport time; print(time.process_time())"
    runs = [
        subprocess.run([sys.executable, "-c", measured], cwd=ROOT, capture_output=True, check=True) for _ in range(5)
    ]
    assert min(float(run.stdout.split()[-1]) for run in runs) <= 0.3
