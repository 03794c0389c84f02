"""The doctor's findings as objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tutelage
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError


def test_findings_come_one_by_one_and_as_json(tmp_path: Path) -> None:
    seen: list[str] = []
    run_file = write_run_file(tmp_path)
    broken = {"data": tmp_path / "nowhere.jsonl", "output": tmp_path / "run"}
    findings = tutelage.doctor(run_file, broken, quick=True, on_finding=lambda finding: seen.append(finding.check))
    assert [finding.check for finding in findings] == seen and len(seen) > 5
    (error,) = [finding for finding in findings if finding.verdict == "error" and "nowhere" in finding.text]
    assert json.loads(json.dumps(error.as_dict())) == {
        "verdict": "error",
        "text": error.text,
        "remedy": error.remedy,
        "details": [],
        "check": error.check,
    }


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        tutelage.doctor(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigurationError, match="processes is 0; expected a number of at least 1"):
        tutelage.doctor(write_run_file(tmp_path), processes=0)
