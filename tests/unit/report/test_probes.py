from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.report import plot_budget, plot_continuation


def gain(length: int, continuer: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    return {
        "length": length, "continuer": continuer, "difference": 0.1, "difference_interval": (0.05, 0.2),
        "relative_gain": None if interval is None else 0.5, "relative_gain_interval": interval,
    }  # fmt: skip


def point(radius: float, auroc: float | None) -> dict[str, Any]:
    return {
        "kl_radius": radius, "reward": 0.25 + radius, "teacher_logprob": -1.0 + radius, "teacher_support_auroc": auroc,
        "teacher_logprob_interval": (-1.1, -0.5), "teacher_support_auroc_interval": None,
    }  # fmt: skip


def text_of(path: Path) -> str:
    return path.read_text()


@pytest.fixture(autouse=True)
def text_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def test_gains_that_cannot_be_relative_are_differences_for_all(tmp_path: Path) -> None:
    known = [gain(8, "teacher", (0.2, 0.9)), gain(8, "student", (0.1, 0.7)), gain(16, "teacher", (0.0, 1.0))]
    relative = text_of(plot_continuation(known, tmp_path / "relative.svg"))
    assert "prefixes, %;" in relative and "continued by the student" in relative and ">16<" in relative
    absolute = text_of(plot_continuation([*known, gain(16, "student", None)], tmp_path / "absolute.svg"))
    assert "prefixes, % points" in absolute


def test_a_budget_without_a_number_is_left_out(tmp_path: Path) -> None:
    drawn = text_of(plot_budget([point(0.0, 0.8), point(0.05, 0.75), point(0.5, None)], tmp_path / "budget.svg"))
    assert "0: 25%" in drawn and "0.05: 30%" in drawn and "0.5: 75%" not in drawn
