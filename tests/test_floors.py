"""The lowest versions in pyproject.toml are not below what its dependencies need of each other."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks import floors

ROOT = Path(__file__).parents[1]


def known() -> dict[str, Version]:
    return {name.lower(): Version(version) for name, version in floors.floors(extras=True).items()}


def lowest(requirement: Requirement) -> Version | None:
    found = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
    return max(found, default=None)


def test_no_floor_is_below_what_transformers_needs() -> None:
    """Such a floor would promise what pip never installs."""
    named = [requirement for requirement in map(Requirement, requires("transformers") or []) if not requirement.marker]
    checked = {requirement.name: lowest(requirement) for requirement in named if requirement.name in known()}
    assert {"tokenizers", "safetensors", "numpy"} <= checked.keys()
    for name, needed in checked.items():
        assert needed is None or known()[name] >= needed, name


def test_floors_that_were_found_too_low_stay_closed() -> None:
    """What transformers 5.17 needs, a tight sandbox of chat templates, and a trackio that imports beside its hub."""
    least = {"tokenizers": "0.23.1", "safetensors": "0.8", "jinja2": "3.1.6", "trackio": "0.39"}
    for name, version in least.items():
        assert known()[name] >= Version(version), name


def test_every_dependency_has_a_floor_that_the_reproducible_set_up_meets() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): Version(version) for name, version in pinned.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, floor in known().items():
        if name in pins:
            assert pins[name] >= floor, name
    assert len(floors.floors(extras=False)) == len(project["dependencies"])
