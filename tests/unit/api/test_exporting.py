"""A model written from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import tutelage
from tests.support.tiny_run import save_pair
from tutelage.errors import ConfigurationError, OutputExistsError


def test_a_model_is_written_once(tmp_path: Path) -> None:
    student, _ = save_pair(tmp_path)
    written = tutelage.export(student, tmp_path / "plain", dtype="bfloat16")
    assert (written.source, written.folder) == (str(student), tmp_path / "plain")
    assert written.as_dict().items() >= {"source": str(student), "folder": str(tmp_path / "plain")}.items()
    assert (tmp_path / "plain/model.safetensors").stat().st_size < (student / "model.safetensors").stat().st_size
    with pytest.raises(OutputExistsError, match="nothing is overwritten"):
        tutelage.export(student, tmp_path / "plain")


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="checkpoint is 'first'; expected one of last, best"):
        tutelage.export("m", tmp_path / "new", checkpoint="first")
    with pytest.raises(ConfigurationError, match="dtype is 'int3'; expected one of"):
        tutelage.export("m", tmp_path / "new", dtype="int3")
