"""Records as a table of pandas, for those who look at numbers in Python; pandas is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.errors import ConfigurationError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["frame_of"]


def frame_of(records: Sequence[Mapping[str, Any]], index: str | None = None) -> DataFrame:
    """A row for each record, a column for each key that some record has; NaN where one has not.

    Args:
      index: a key of all records, which names the rows.
    Raises:
      ConfigurationError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as problem:
        raise ConfigurationError(
            f"pandas cannot be imported ({problem}), and a table of numbers was asked for. Install it with: pip "
            "install pandas"
        ) from problem
    frame = pandas.DataFrame.from_records([dict(record) for record in records])
    return frame.set_index(index) if index is not None and len(frame) else frame
