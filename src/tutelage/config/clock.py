"""Which date does a chat template get?  One that belongs to the run, not to the day on which a command is given.

A date that a template has asked for is kept with the result: in a run's `config.toml`, beside generated answers, with a
teacher's scores. A command that continues from one of these uses its date.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tutelage.config.places import setting_of_run
from tutelage.config.schema import DataConfig, RunConfig
from tutelage.errors import TutelageError
from tutelage.rollout import ScoreCache
from tutelage.tasks import TemplateClock

__all__ = ["DATE", "date_of_run", "date_of_scores", "dated", "template_clock", "with_asked_date"]

DATE = "template_date"


def template_clock(data: DataConfig) -> TemplateClock:
    """The clock for prompts: the date in [data], else that of the scores that it names, else now."""
    text = data.template_date or (None if data.scores is None else date_of_scores(Path(data.scores)))
    return TemplateClock() if text is None else TemplateClock(datetime.fromisoformat(text))


def dated(config: RunConfig, date: str | None) -> RunConfig:
    """The configuration with a date that was kept earlier, unless it has its own."""
    return config if date is None or config.data.template_date is not None else _with_date(config, date)


def with_asked_date(config: RunConfig, clock: TemplateClock) -> RunConfig:
    """The configuration with the date that its templates asked for; unchanged if none did."""
    return dated(config, clock.moment.isoformat()) if clock.was_asked else config


def date_of_run(folder: Path) -> str | None:
    """The date in the configuration of the run that a folder holds; None without a run, or without a date."""
    date = setting_of_run(folder, "data", DATE)
    return date if isinstance(date, str) else None


def date_of_scores(folder: Path) -> str | None:
    """The date of the prompts that a folder of scores belongs to; None without scores, or without a date."""
    try:
        date = ScoreCache(folder).manifest["key"]["template"].get(DATE)
    except (TutelageError, OSError, KeyError, AttributeError, TypeError):  # refused where the scores are used
        return None
    return date if isinstance(date, str) else None


def _with_date(config: RunConfig, date: str) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={DATE: date})})
