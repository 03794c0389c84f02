"""Where is a run, and where are the files that it names?  A run is where its config.toml is, also after a move.

Relative paths of a run start from the directory in which the command runs. A file that is not there is looked for from
the directory in which the run was started, which its folder records. So a run can be resumed from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.config.source import read_table
from tutelage.errors import ConfigurationError
from tutelage.training import RunFolder
from tutelage.training.run_files import CONFIG

__all__ = ["find_again", "is_address", "is_path_of_content", "setting_of_run", "without_reward_paths"]


def find_again(table: dict[str, Any], file: Path) -> None:
    """In the table of a run's own config.toml, set the folder to where it is now, and correct paths that it names.

    The table of any other run file stays as it is.
    """
    folder = RunFolder(file.parent)
    if file.name != CONFIG or not folder.holds_run:
        return
    table["output"] = str(folder.path)
    started_in = (folder.read_fingerprints() or {}).get("started_in")
    if not isinstance(started_in, str):
        return
    for owner, key in _paths_in(table):
        elsewhere = Path(started_in) / owner[key]
        if not Path(owner[key]).exists() and elsewhere.exists():
            owner[key] = str(elsewhere)


def setting_of_run(folder: Path, table: str, key: str) -> Any:
    """A setting in the configuration of the run that a folder holds; None without a run, or without the setting."""
    try:
        settings = read_table(folder / CONFIG).get(table)
    except (OSError, ConfigurationError):  # no run, or a broken one, which is refused elsewhere
        return None
    return settings.get(key) if isinstance(settings, dict) else None


def is_address(key: str) -> bool:
    """Whether a setting says only where one of several teachers is served."""
    return key.startswith("teacher.routes.") and key.endswith(".server")


def is_path_of_content(key: str) -> bool:
    """Whether a setting is only the place of something whose content is compared when a run is resumed."""
    role, _, rest = key.partition(".")
    last = rest.rpartition(".")[2]
    return (role in ("student", "teacher", "reference") and last in ("path", "revision")) or key in (
        "data.path",
        "data.scores",
    )


def without_reward_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key without the places of reward models, whose content is compared too."""
    rewards = [
        {name: value for name, value in table.items() if name not in ("path", "revision")}
        for table in settings.get("reward", [])
    ]
    return {**settings, "reward": rewards}


def _paths_in(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every path of a resolved configuration, as the table that holds it and its key there."""
    teacher, evaluation = _table(table.get("teacher")), _table(table.get("evaluation"))
    owners = [table.get("student"), teacher, table.get("reference"), table.get("data"), *evaluation.get("sets", [])]
    owners += [*teacher.get("experts", []), *_table(teacher.get("routes")).values()]
    owners += rewards if isinstance(rewards := table.get("reward"), list) else []
    for owner in map(_table, owners):
        yield from ((owner, key) for key in ("path", "base", "scores") if isinstance(owner.get(key), str))


def _table(value: Any) -> dict[str, Any]:
    """A table, which may have been edited into its short form."""
    return value if isinstance(value, dict) else {}
