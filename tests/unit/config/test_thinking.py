"""A run file switches thinking on and off, for student and teacher apart, where templates can, as Qwen3.5's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import CHAT_TEMPLATE, make_tokenizer, write_run_file
from tutelage.config import RunAssembly, load_config

# Thinking is opened for the model unless it is switched off, and then it is opened and closed.
THINKING_TEMPLATE = CHAT_TEMPLATE + (
    "{%- if add_generation_prompt -%}{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\n\n</think>\n\n' -}}{%- else -%}{{- '<think>\n' -}}{%- endif -%}{%- endif -%}"
)
OPEN, CLOSED = "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
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
def test_what_each_model_reads(run_file: Path, overrides: list[str], of_student: str, of_teacher: str) -> None:
    run = RunAssembly(load_config(run_file, overrides))
    read: Any = run.tokenizers.student.decode
    for prompt in run.prompts.prompts:
        assert read(prompt.student_tokens).endswith(of_student)
        assert read(prompt.tokens_for_teacher).endswith(of_teacher)
    [evaluated] = run.evaluation_sets
    assert all(read(prompt.student_tokens).endswith(of_student) for prompt in evaluated.prompts)
