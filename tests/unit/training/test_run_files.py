"""What a run that is resumed does with what was written after its checkpoint."""

from __future__ import annotations

import pytest

from tutelage.errors import CheckpointError
from tutelage.training.run_files import RunFolder


def test_truncating_keeps_the_past_and_sets_the_rest_aside(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    folder.append("metrics.jsonl", [{"step": step} for step in range(5)])
    folder.append("evaluations.jsonl", [{"step": step, "name": "a"} for step in (0, 2, 4)])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    folder.truncate_to(2)
    assert folder.read("metrics.jsonl") == [{"step": 0}, {"step": 1}]
    assert [record["step"] for record in folder.read("evaluations.jsonl")] == [0, 2]
    assert [record["step"] for record in folder.read("superseded.jsonl")] == [2, 3, 4, 4]


def test_lines_nested_without_end_are_left_out(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    (folder.path / "metrics.jsonl").write_text("[" * 100_000 + '\n{"step": 3}\n{"step"')
    assert folder.read("metrics.jsonl") == [{"step": 3}]
    (folder.path / "fingerprints.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"fingerprints\.json cannot be read"):
        folder.read_fingerprints()
