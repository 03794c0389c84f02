"""What each model reads: prompts and answers against its length, from configurations alone, and switched thinking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.long_models import LONG, SWITCH, longrope, phi3
from tests.support.tiny_run import CHAT_TEMPLATE, make_tokenizer, write_run_file
from tutelage.config import RunAssembly, load_config
from tutelage.config.model_sections import ModelConfig, TeacherConfig
from tutelage.config.models import context_length
from tutelage.config.prompts import check_lengths
from tutelage.errors import ConfigurationError
from tutelage.types import Prompt

# Thinking is opened for the model unless it is switched off, and then it is opened and closed.
THINKING_TEMPLATE = CHAT_TEMPLATE + (
    "{%- if add_generation_prompt -%}{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\n\n</think>\n\n' -}}{%- else -%}{{- '<think>\n' -}}{%- endif -%}{%- endif -%}"
)
OPEN, CLOSED = "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"


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


@pytest.fixture
def thinking_run(tmp_path: Path) -> Path:
    """A run file of two models that can think."""
    path = write_run_file(tmp_path)
    for role, eos in (("student", "<|endoftext|>"), ("teacher", "<|im_end|>")):
        tokenizer = make_tokenizer(eos=eos)
        tokenizer.chat_template = THINKING_TEMPLATE
        tokenizer.save_pretrained(tmp_path / role)
    return path


@pytest.mark.parametrize(
    ("overrides", "of_student", "of_teacher"),
    [
        ([], OPEN, OPEN),
        (["data.chat_template_kwargs={enable_thinking=false}"], CLOSED, CLOSED),
        (["data.teacher_chat_template_kwargs={enable_thinking=false}"], OPEN, CLOSED),
        (
            [
                "data.chat_template_kwargs={enable_thinking=false}",
                "data.teacher_chat_template_kwargs={enable_thinking=true}",
            ],
            CLOSED,
            OPEN,
        ),
    ],
    ids=["as the templates are", "both off", "the teacher's off", "the student's off"],
)
def test_thinking_is_switched_for_each_model(
    thinking_run: Path, overrides: list[str], of_student: str, of_teacher: str
) -> None:
    run = RunAssembly(load_config(thinking_run, overrides))
    read: Any = run.tokenizers.student.decode
    for prompt in run.prompts.prompts:
        assert read(prompt.student_tokens).endswith(of_student)
        assert read(prompt.tokens_for_teacher).endswith(of_teacher)
    [evaluated] = run.evaluation_sets
    assert all(read(prompt.student_tokens).endswith(of_student) for prompt in evaluated.prompts)
