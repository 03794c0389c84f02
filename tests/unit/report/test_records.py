import json

import numpy as np
import pytest

from tutelage.errors import DataError
from tutelage.report.lines import read_jsonl
from tutelage.report.records import columns_of, curve, read_run


def test_read_jsonl_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = b'{"step": 0}\n\n{"step": 1, "text": "\xc3\x97"}\n'
    for torn in (b"", b'{"step": 2, "lo', b'{"text": "\xc3', b"\n"):
        path.write_bytes(whole + torn)
        assert [record["step"] for record in read_jsonl(path)] == [0, 1]
    path.write_bytes(whole + b'{"step": 2}')  # whole, only its line end is missing
    assert len(read_jsonl(path)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no complete line"),
        (b'{"step": 0, "lo', "no complete line"),
        (b'{"step": 0}\n{"step\n{"step": 2}\n', "line 2 is not JSON"),
        (b'{"step": 0}\n[1, 2]\n', "line 2 is b'\\[1, 2\\]'; expected a JSON object"),
    ],
)
def test_read_jsonl_refuses_files_it_would_have_to_guess_about(tmp_path, content, message):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_jsonl(path)


def test_read_jsonl_refuses_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_jsonl(tmp_path / "metrics.jsonl")


def test_curve_skips_what_is_no_finite_number_and_keeps_the_later_of_two_equal_steps():
    records = [
        {"step": 3, "loss": 3.0},
        {"step": 0, "loss": 9},
        {"step": 1},
        {"loss": 1.0},
        {"step": 2, "loss": None},
        {"step": 4, "loss": float("nan")},
        {"step": 5, "loss": "0.1"},
        {"step": 0, "loss": 0.5},
    ]
    columns = columns_of(records)
    line = curve(columns, "loss")
    assert line.steps.tolist() == [0, 3]
    assert line.values.tolist() == [0.5, 3.0]
    assert len(curve(columns, "reward")) == len(curve(columns, "no such key")) == 0


def test_read_run_needs_metrics_but_no_evaluations(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert read_run(tmp_path).evaluations == {}
    evaluations = [
        {"step": 0, "name": "a", "pass_at_1": 0.3, "pass_at_1_interval": [0.2, 0.4]},
        {"step": 0, "name": "b"},
    ]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    found = read_run(tmp_path).evaluations
    assert list(found) == ["a", "b"]
    assert (found["a"]["pass_at_1_low"], found["a"]["pass_at_1_high"]) == ([0.2], [0.4])
    assert np.isnan(found["b"]["pass_at_1_low"]).all()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"metrics\.jsonl does not exist"):
        read_run(tmp_path)
