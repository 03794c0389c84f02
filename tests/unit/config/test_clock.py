from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import DataConfig, RunConfig, resolve_config, to_toml
from tutelage.config.clock import date_of_run, date_of_scores, dated, template_clock, with_asked_date
from tutelage.errors import ConfigurationError
from tutelage.rollout import ScoreCache
from tutelage.tasks import TemplateClock

MARCH = "2026-03-01T09:30:00"


def config(**data: Any) -> RunConfig:
    return resolve_config({"student": "a", "teacher": "b", "data": {"path": "p.jsonl", **data}})


@pytest.mark.parametrize("value", ["2026-03-01", date(2026, 3, 1), datetime(2026, 3, 1)])
def test_a_date_may_be_written_as_toml_has_it(value: Any) -> None:
    assert template_clock(config(template_date=value).data).moment == datetime(2026, 3, 1)


@pytest.mark.parametrize("value", ["today", "2026-13-01", 5, ""])
def test_what_is_no_date(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.template_date is .*; expected a date such as 2026-03-01"):
        config(template_date=value)


def test_a_date_is_kept_only_where_a_template_asked_for_it() -> None:
    clock = TemplateClock(datetime.fromisoformat(MARCH))
    assert with_asked_date(config(), clock) == config()
    assert "template_date" not in to_toml(config())
    clock.was_asked = True
    assert with_asked_date(config(), clock).data.template_date == MARCH
    assert with_asked_date(config(template_date="2020-01-01"), clock).data.template_date == "2020-01-01"


def test_a_run_folder_gives_its_date_unless_the_command_has_one(tmp_path: Path) -> None:
    assert date_of_run(tmp_path) is None
    (tmp_path / "config.toml").write_text(to_toml(config(template_date=MARCH)))
    assert date_of_run(tmp_path) == MARCH
    assert dated(config(), date_of_run(tmp_path)).data.template_date == MARCH
    assert dated(config(template_date="2020-01-01"), MARCH).data.template_date == "2020-01-01"
    for broken in ("[data", "data = 3", "[data]\ntemplate_date = 3"):
        (tmp_path / "config.toml").write_text(broken)
        assert date_of_run(tmp_path) is None


def test_scores_give_the_date_of_their_prompts(tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    assert date_of_scores(scores) is None
    ScoreCache(scores).create({"key": {"template": {"template_date": MARCH}}, "num_answers": 0})
    assert template_clock(DataConfig(path="p", scores=str(scores))).moment == datetime.fromisoformat(MARCH)
    own = DataConfig(path="p", scores=str(scores), template_date="2020-01-01")
    assert template_clock(own).moment == datetime(2020, 1, 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_date_of_a_run_is_read_as_its_run_file_is(tmp_path: Path, encoding: str) -> None:
    """An editor may have saved the file anew; another date would be other prompts."""
    text = to_toml(config(template_date=MARCH, system_prompt="Löse die Aufgabe."))
    (tmp_path / "config.toml").write_bytes(text.encode(encoding))
    assert date_of_run(tmp_path) == MARCH
