from __future__ import annotations

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from tests.support.chat import QUESTION, TEMPLATE, make_tokenizer, read
from tutelage.errors import ConfigurationError
from tutelage.tasks import TemplateClock, render, render_all

DATED = "Today: {{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }} " + TEMPLATE
MARCH = datetime(2026, 3, 1, 9, 30)


def test_a_template_is_told_the_clocks_date() -> None:
    tokenizer, clock = make_tokenizer(DATED), TemplateClock(MARCH)
    for _ in range(2):
        text = read(tokenizer, render(QUESTION, tokenizer, clock=clock))
        assert text == "Today: 01 Mar 2026 <bos><|user|>1 + 1?<|assistant|>"
    assert clock.was_asked


def test_the_wall_clock_is_put_back() -> None:
    wall_clock = vars(chat_template_utils)["datetime"]
    render(QUESTION, make_tokenizer(DATED), clock=TemplateClock(MARCH))
    assert vars(chat_template_utils)["datetime"] is wall_clock is datetime


def test_a_clock_knows_whether_a_template_looked_at_it() -> None:
    given = "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}"
    clock = TemplateClock(MARCH)
    tokenizer = make_tokenizer(given + TEMPLATE)
    text = read(tokenizer, render(QUESTION, tokenizer, clock=clock, chat_template_kwargs={"date_string": "1999"}))
    assert text.startswith("1999<bos>") and not clock.was_asked
    render(QUESTION, make_tokenizer(TEMPLATE), clock=clock)
    assert not clock.was_asked
    assert read(tokenizer, render(QUESTION, tokenizer, clock=clock)).startswith("2026<bos>") and clock.was_asked


def test_every_reader_of_a_run_is_told_the_same_date() -> None:
    student, teacher = make_tokenizer(DATED), make_tokenizer("T " + DATED)
    (prompt,) = render_all(
        [QUESTION], student, {None: teacher}, max_prompt_tokens=90, clock=TemplateClock(MARCH)
    ).prompts
    assert "01 Mar 2026" in read(student, prompt.student_tokens)
    assert "01 Mar 2026" in read(teacher, prompt.teacher_tokens)


def test_a_clock_that_cannot_be_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def render_otherwise(*_: object, **__: object) -> tuple[list[str], list[int]]:
        return ["2031-01-01 00:00:00"], []

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", render_otherwise)
    with pytest.raises(ConfigurationError, match=r"asks for the date \(strftime_now\), and transformers .* cannot be"):
        render(QUESTION, make_tokenizer(DATED), clock=TemplateClock(MARCH))
