"""Imports point down, parts do not know each other, and heavy packages stay at the rim (docs/design)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "tutelage"

# From the top down. A module imports from lower lines and from its own folder only.
ORDER = """
__main__
__init__
cli
api
demo
comparison preflight probes display integrations
config
training
evaluation runtime
diagnostics
rollout rewards
divergences
policies targets losses weighting models tasks
advantages
kernels
distributions schedules report
locks paths hub frames
types errors files
"""
RANK = {name: -line for line, names in enumerate(ORDER.split("\n")) for name in names.split()}
# Folders that promise less than their rank would allow.
ONLY = {
    "diagnostics": {"types", "errors", "distributions", "weighting"},
    "report": {"errors", "files"},
    "types": set(),
    "errors": set(),
    "files": set(),
    "locks": {"errors"},
    "frames": {"errors"},
}
# Packages that stay where they are wrapped.
HOMES: dict[str, set[str]] = {
    "transformers": {"models", "tasks", "demo"},
    "accelerate": {"runtime"},
    "peft": {"models"},
    "matplotlib": {"report"},
    "pandas": {"frames"},
    "triton": {"kernels"},
    "vllm": {"rollout"},
    "trl": {"integrations"},
}


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a module imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from tutelage import x` imports the module x, `from tutelage.x import y` the module x or x.y.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def complaints(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, such as `tutelage.policies.student`."""
    own = module.split(".")[1] if "." in module else "__init__"
    found = []
    for line, name in imports(source, module, is_package):
        top, _, below = name.partition(".")
        part = below.split(".")[0]
        where = f"{module}:{line} imports {name}"
        if own not in HOMES.get(top, {own}):
            found.append(f"{where}; {top} belongs to {', '.join(sorted(HOMES[top])) or 'no folder yet'}")
        if top != "tutelage" or part in (own, "__version__"):
            continue
        if part not in RANK:
            found.append(f"{where}, which has no place in the order")
        elif part not in ONLY.get(own, {part}) or RANK[part] >= RANK[own]:
            found.append(f"{where}, which is not below it")
    return found


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    path = modules()[module]
    assert complaints(path.read_text(), module, is_package=path.name == "__init__.py") == []


def test_every_folder_has_a_place_in_the_order() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert found - {"__pycache__", "recipes"} <= set(RANK), "recipes are data"


def test_no_folder_is_called_utils() -> None:
    assert not [module for module in modules() if {"utils", "util", "common", "helpers"} & set(module.split("."))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tutelage.policies.new", "from tutelage.rollout import PairedEngine"),
        ("tutelage.policies.new", "from tutelage.losses.support import Support"),
        ("tutelage.targets.new", "import tutelage.policies.base"),
        ("tutelage.targets.new", "from ..policies import Student"),
        ("tutelage.losses.new", "def late():\n    from tutelage.models import align"),
        ("tutelage.rollout.new", "if TYPE_CHECKING:\n    from tutelage.training import Run"),
        ("tutelage.evaluation.new", "from tutelage import training"),
        ("tutelage.evaluation.new", "from tutelage.runtime import LocalRuntime"),
        ("tutelage.diagnostics.new", "from tutelage.rollout import PairedEngine"),
        ("tutelage.report.new", "from tutelage.types import Rollout"),
        ("tutelage.config.new", "import tutelage.cli.app"),
        ("tutelage.distributions", "from tutelage.schedules import Linear"),
        ("tutelage.errors", "from tutelage.types import Prompt"),
        ("tutelage.training.new", "from tutelage.utils import anything"),
        ("tutelage.rollout.new", "import transformers.cache_utils"),
        ("tutelage.training.new", "try:\n    from accelerate import Accelerator\nexcept ImportError:\n    pass"),
        ("tutelage.training.new", "import vllm"),
        ("tutelage.cli.new", "import matplotlib.pyplot as plt"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert len(complaints(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tutelage.policies.new", "from tutelage.policies.base import Policy\nfrom .student import Student"),
        (
            "tutelage.training.new",
            "import torch\nfrom tutelage.rollout import PairedEngine\nfrom tutelage import __version__",
        ),
        ("tutelage.models.new", "from transformers import AutoTokenizer"),
        ("tutelage.cli.new", "def late():\n    from tutelage.config import build_run"),
    ],
)
def test_a_right_import_is_not_complained_about(module: str, source: str) -> None:
    assert complaints(source, module) == []


def test_the_command_line_answers_without_torch() -> None:
    """`--help` takes a fraction of a second because nothing heavy is imported before a command needs it."""
    heavy = "{'torch', 'transformers', 'pydantic', 'numpy', 'matplotlib', 'datasets'}"
    code = f"import sys, tutelage.cli; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
