"""Will this run work, and are its checkpoints what they say?  Findings and verdicts as objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tutelage.api.arguments import Overrides, RunFile, check_numbers, threads
from tutelage.config import CheckpointVerdict, load_config, verify_run
from tutelage.preflight import Finding, examine

__all__ = ["doctor", "verify"]


def doctor(
    run_file: RunFile,
    overrides: Overrides | None = None,
    *,
    quick: bool = False,
    processes: int = 1,
    on_finding: Callable[[Finding], None] | None = None,
) -> list[Finding]:
    """Examine a run file before it costs anything; a finding with the verdict "error" means that it cannot work.

    Args:
      run_file, overrides: as `train` takes them.
      quick: only what needs no weights.
      processes: how many are to share the run (torchrun); memory and time are those of one of them.
      on_finding: gets each finding as it is made.
    Raises:
      ConfigurationError: the run file cannot be read; what is wrong beyond that is a finding.
    """
    check_numbers({"processes": processes})
    config = load_config(run_file, overrides or ())
    findings = []
    with threads(config.runtime.threads):
        for finding in examine(config, quick=quick, processes=processes):
            findings.append(finding)
            if on_finding is not None:
                on_finding(finding)
    return findings


def verify(run: str | Path, *, accept: Sequence[str] = ()) -> list[CheckpointVerdict]:
    """Take the digests of a run's files and inputs again: is every checkpoint what it says?  In the order of steps.

    Args:
      run: its folder, or one of its checkpoints.
      accept: what may differ, such as "versions".
    Raises:
      CheckpointError: the folder holds no run, or no checkpoint.
      ConfigurationError: its config.toml cannot be read, or `accept` has an unknown name.
    """
    return verify_run(Path(run).expanduser(), accept)
