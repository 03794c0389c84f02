"""A folder with the tiny model that adapters are put on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_run import make_tokenizer, save_model


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "base", make_tokenizer(), padded_size=264, stop_ids=256, seed=1))
