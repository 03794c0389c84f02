"""What `doctor` finds of one kind."""

from __future__ import annotations

from tutelage.config import RunAssembly, RunConfig
from tutelage.preflight import CHEAP, COSTLY, Finding


def assembly(config: RunConfig) -> RunAssembly:
    """The run in parts, its teacher included, as `examine` looks at it."""
    return RunAssembly(config, asks_teacher=True)


def found(config: RunConfig, name: str) -> Finding:
    return {**CHEAP, **COSTLY}[name](assembly(config))
