"""Prompts and answers against what each model reads as one model, from configurations alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.long_models import LONG, SWITCH, longrope, phi3
from tutelage.config.models import context_length
from tutelage.config.prompts import check_lengths
from tutelage.config.schema import ModelConfig, TeacherConfig
from tutelage.errors import ConfigurationError
from tutelage.types import Prompt


@pytest.fixture
def switching(tmp_path: Path) -> str:
    """A folder of a model whose rotary factors switch; its weights are not there."""
    phi3().config.save_pretrained(tmp_path / "phi")
    return str(tmp_path / "phi")


def test_a_run_that_could_cross_the_switch_is_refused_with_what_fits(switching: str, tmp_path: Path) -> None:
    phi3(longrope() | {"short_factor": LONG}).config.save_pretrained(tmp_path / "held")
    prompts = [Prompt([1] * 5), Prompt([1] * 9, teacher_tokens=[1] * 12)]
    check_lengths(ModelConfig(path=switching), None, prompts, SWITCH - 9, "rollout.max_new_tokens")
    with pytest.raises(ConfigurationError, match=r"rotary factors change beyond 24 tokens.*Set key to at most 15, or"):
        check_lengths(ModelConfig(path=switching), None, prompts, SWITCH - 8, "key")
    held = ModelConfig(path=str(tmp_path / "held"))
    check_lengths(held, None, prompts, 400, "key")
    with pytest.raises(ConfigurationError, match=r"longest prompt has 12 tokens.*Set key to at most 12, or"):
        check_lengths(held, ModelConfig(path=switching), prompts, SWITCH - 9, "key")


def test_a_served_teacher_holds_one_set_of_factors(switching: str) -> None:
    """Its server reads every text whole, and decides once."""
    assert context_length(TeacherConfig(path=switching)) == SWITCH
    assert context_length(TeacherConfig(path=switching, server="http://localhost:1")) == 512
