"""A real TRL on the CPU, in its own environment (make test-trl)."""

from __future__ import annotations

import importlib.util

import pytest

HAS_TRL = importlib.util.find_spec("trl") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/trl" in item.path.as_posix():
            item.add_marker(pytest.mark.trl)
            # TRL and what it imports warn about their own use of one another.
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not HAS_TRL:
                item.add_marker(pytest.mark.skip(reason="needs TRL in an environment of its own: make test-trl"))
