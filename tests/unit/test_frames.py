"""Records as a pandas frame."""

from __future__ import annotations

import sys

import pytest

from tutelage.errors import ConfigurationError
from tutelage.frames import frame_of


def test_a_row_for_each_record_and_a_column_for_each_key() -> None:
    frame = frame_of([{"step": 0, "loss": 1.0, "kl_used": 0.1}, {"step": 1, "loss": None}], "step")
    assert list(frame.index) == [0, 1] and list(frame.columns) == ["loss", "kl_used"]
    assert frame.isna().to_numpy().tolist() == [[False, False], [True, True]]
    assert frame_of([], "step").empty


def test_without_pandas_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match="pandas cannot be imported .* Install it with: pip install pandas"):
        frame_of([])
