"""Where a model comes from."""

from __future__ import annotations

import pytest

from tutelage.errors import ConfigurationError
from tutelage.models import (
    ModelSource,
    check_distinct,
)


def test_teacher_must_not_be_the_student(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigurationError, match="cannot learn from itself"):
        check_distinct(ModelSource(str(tmp_path / "model")), ModelSource(str(tmp_path / "model" / ".." / "model")))
    check_distinct(ModelSource("Qwen/Qwen3-0.6B"), ModelSource("Qwen/Qwen3-0.6B", revision="other-revision"))
    check_distinct(ModelSource("Qwen/Qwen3-0.6B"), ModelSource("Qwen/Qwen3-4B"))
