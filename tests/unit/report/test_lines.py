"""Run files are read an object at a time, damaged, too long or still growing as they may be."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.errors import DataError
from tutelage.report import lines
from tutelage.report.lines import FollowedFile, lines_of, read_jsonl, sound_objects
from tutelage.report.live import FollowedRun, RunView
from tutelage.report.records import columns_of


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"step": 1' + b"0" * 5_000 + b"}", b"\x00\xff" * 100])
def test_a_line_that_json_cannot_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 0}\n' + content + b"\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_line_without_an_end_in_sight_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1_000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 0}\n{"text": "' + "x" * 1_000_000 + '"}\n{"step": 2}\n')
    tracemalloc.start()
    with pytest.raises(DataError, match="line 2 is longer than"):
        read_jsonl(path)
    left_out: list[str] = []
    assert [record["step"] for record in sound_objects(path, left_out)] == [0, 2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000
    assert len(left_out) == 1 and "1 line cannot be read; line 2 is longer than" in left_out[0]
    starts = [start for _, start, _ in lines_of(path)]
    assert path.read_bytes()[starts[-1] :] == b'{"step": 2}\n', "places are right after a line that was passed over"


def test_of_a_line_its_numbers_are_kept_and_nothing_else() -> None:
    num_lines = 4_000
    tracemalloc.start()
    columns = columns_of(
        {"step": step, **{f"metric_{i}": i + 0.5 for i in range(40)}, "loss": 0.5} for step in range(num_lines)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(columns) == num_lines and columns["loss"].sum() == num_lines / 2
    assert peak < 400 * num_lines, "of a dictionary with so many numbers it would be over 3,000 bytes a line"


def test_a_file_that_grows_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    followed = FollowedFile(path)
    assert followed.news() == (False, [])
    path.write_text('{"step": 0}\n{"st')
    assert followed.news() == (True, [{"step": 0}])
    assert followed.news() == (False, [])
    with path.open("a") as file:
        file.write('ep": 1}\nno object\n{"step": 2}\n')
    assert followed.news() == (False, [{"step": 1}, {"step": 2}])
    path.write_text('{"step": 0}\n')
    assert followed.news() == (True, [{"step": 0}]), "shorter than before, so it was written anew"


def drawn(view: RunView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_run_that_is_resumed_is_seen_from_its_beginning(tmp_path: Path) -> None:
    def write(name: str, steps: int) -> None:
        text = "".join(
            json.dumps({"step": step, "name": "s", "loss": 1 / (1 + step), "pass_at_1": 0.25}) + "\n"
            for step in range(steps)
        )
        (tmp_path / f".{name}").write_text(text)
        (tmp_path / f".{name}").rename(tmp_path / name)

    run = FollowedRun(tmp_path)
    assert run.look().num_steps == 0
    for steps in (5, 2, 4):  # each time renamed into place, as a run that is cut back does
        write("metrics.jsonl", steps)
        write("evaluations.jsonl", steps)
        view = run.look()
        assert (view.num_steps, view.last_pass_at_1) == (steps, 0.25)
        assert drawn(view) == drawn(FollowedRun(tmp_path).look()), "nothing of what was taken back is left"
