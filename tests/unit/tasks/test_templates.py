from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from tests.support.chat import CHAT, NO_SYSTEM, QUESTION, TEMPLATE, make_tokenizer, read
from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks import Problem, PromptStyle, closing_text, render, render_all, templates
from tutelage.tasks.templates import comes_out

ASSISTANT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PARTS = "{% for m in messages %}<|user|>{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}" + ASSISTANT


# --- the question comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "<|user|>" + ASSISTANT,
        "{% for m in messages %}<|user|>{{ m.text }}{% endfor %}" + ASSISTANT,
        "{% for m in messages %}{{ m.content[:5] }}{% endfor %}" + ASSISTANT,
        "{{ messages[-1].content }}" + ASSISTANT,
        "",
    ],
    ids=["nothing", "another key", "cut", "last turn only", "empty"],
)
def test_a_question_that_is_lost_is_refused_by_problem(template: str) -> None:
    turns = Problem("q/7", ({"role": "user", "content": "How many eggs?"}, {"role": "user", "content": "And hens?"}))
    with pytest.raises(DataError, match=r"writes out problem q/7 without its question: '(How many eggs\?|And hens\?)'"):
        render(turns, make_tokenizer(template))


def test_a_question_that_is_lost_in_one_row_only_is_refused_as_well() -> None:
    template = "{% if 'hens' not in messages[0].content %}{{ messages[0].content }}{% endif %}" + ASSISTANT
    with pytest.raises(DataError, match=r"writes out problem b without its question: 'How many hens\?'"):
        render_all(
            [Problem("a", "How many eggs?"), Problem("b", "How many hens?")],
            make_tokenizer(template),
            {},
            max_prompt_tokens=50,
        )


@pytest.mark.parametrize(
    "filters", ["trim", "e", "tojson", "upper", "replace('\n', ' ')", "wordwrap(9)", "indent(2)", "string"]
)
def test_a_question_may_be_escaped_stripped_and_set_anew(filters: str) -> None:
    problem = Problem("q", '  Is "a < b"\nalways so, & why\\not?  Größe ½ \n')
    template = "{{ messages[0].content | " + filters + " }}" + ASSISTANT
    assert render(problem, make_tokenizer(template))


@pytest.mark.parametrize(
    ("content", "text", "is_there"),
    [
        ("1 + 1?", "<u>1 + 1?</u>", True),
        ("∑∑?", "<u></u>", False),
        ("<>", "a &lt;&gt; b", True),
        ("", "anything", True),
        ("How many eggs?", "How many", False),
    ],
)
def test_what_counts_as_coming_out(content: str, text: str, is_there: bool) -> None:
    assert comes_out(content, text) == is_there


def test_thinking_of_earlier_answers_may_be_cut() -> None:
    turns = (
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "<think>hm</think>One."},
        {"role": "user", "content": "2?"},
    )
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }} {% endfor %}" + ASSISTANT
    tokenizer = make_tokenizer(template)
    assert read(tokenizer, render(Problem("q", turns), tokenizer)) == "1? One. 2? <|assistant|>"


def test_a_template_for_message_parts_gets_parts() -> None:
    tokenizer = make_tokenizer(PARTS)
    assert read(tokenizer, render(QUESTION, tokenizer)) == "<|user|>1 + 1?<|assistant|>"
    first = make_tokenizer("{{ messages[0].content[0].text }}" + ASSISTANT)
    assert read(first, render(QUESTION, first)) == "1 + 1?<|assistant|>"
    both = make_tokenizer(
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}{% else %}P{{ m.content[0].text }}"
        "{% endif %}{% endfor %}"
    )
    assert read(both, render(QUESTION, both)) == "S1 + 1?"


# --- what goes wrong in a template -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[1].content }}", "UndefinedError: list object has no element 1"),
        ("{{ 'You are ' + messages[0].name }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages | length + 'x' }}", "TypeError"),
        ("{{ now() }}", "UndefinedError: 'now' is undefined"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_errors_within_a_template_are_one_line(template: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"the chat template of .* fails on problem q/0 \({message}") as caught:
        render(QUESTION, make_tokenizer(template + TEMPLATE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages | nothing }}", "{% oops %}"])
def test_what_is_no_template(template: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no Jinja template \(.*, line 1\)\. Correct it"):
        render(QUESTION, make_tokenizer(template))


@pytest.mark.processes
@pytest.mark.parametrize("template", [TEMPLATE, PARTS])
def test_a_template_without_an_end_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.05)
    endless = "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(99) %}{% endfor %}{% endfor %}"
    only_for_b = "{% if 'b' in messages[0].content | string %}" + endless + "{% endfor %}{% endif %}"
    with pytest.raises(DataError, match=r"has not written out problem q/b within 0\.05 seconds; expected"):
        render_all(
            [Problem("q/a", "aaa"), Problem("q/b", "bbb"), Problem("q/c", "ccc")],
            make_tokenizer(only_for_b + template),
            {},
            max_prompt_tokens=50,
        )
    assert closing_text(make_tokenizer(endless + "{% endfor %}" + TEMPLATE)) is None


# --- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "truncation",
    ],
)
def test_keywords_that_are_not_for_the_template(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.chat_template_kwargs sets {name}; expected only names"):
        render(QUESTION, make_tokenizer(TEMPLATE), chat_template_kwargs={name: True})


def test_a_keyword_of_the_teacher_is_named_by_its_key() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.teacher_chat_template_kwargs sets truncation"):
        render_all(
            [QUESTION],
            make_tokenizer(TEMPLATE),
            {None: make_tokenizer(TEMPLATE)},
            max_prompt_tokens=50,
            style=PromptStyle(teacher_chat_template_kwargs={"truncation": True}),
        )


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_and_documents_are_lists_of_tables(name: str) -> None:
    tokenizer = make_tokenizer("{{ " + name + "[0].title }}" + TEMPLATE)
    text = read(tokenizer, render(QUESTION, tokenizer, chat_template_kwargs={name: [{"title": "T"}]}))
    assert text.startswith("T<bos>")
    for wrong in ("x", 3, [3], {"title": "T"}):
        with pytest.raises(ConfigurationError, match=rf"sets {name} to .*; expected a list of tables"):
            render(QUESTION, tokenizer, chat_template_kwargs={name: wrong})


def test_values_that_a_template_would_not_read_as_they_were_written() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    for value in (date(2026, 3, 1), {"on": [date(2026, 3, 1)]}):
        with pytest.raises(ConfigurationError, match=r"data\.chat_template_kwargs\.day holds a date, .* in quotes"):
            render(QUESTION, tokenizer, chat_template_kwargs={"day": value})
    with pytest.raises(ConfigurationError, match=r"sets strftime_now, .* Set data\.template_date"):
        render(QUESTION, tokenizer, chat_template_kwargs={"strftime_now": "x"})


# --- several templates -----------------------------------------------------------------------------------------------


def several(**named: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = named
    return tokenizer


def test_of_several_templates_one_is_chosen() -> None:
    tokenizer = several(default=TEMPLATE, rag="R" + TEMPLATE)
    assert read(tokenizer, render(QUESTION, tokenizer)).startswith("<bos>")
    assert read(tokenizer, render(QUESTION, tokenizer, chat_template="rag")).startswith("R<bos>")
    with pytest.raises(
        ConfigurationError, match=r"templates default, rag, and data\.chat_template is 'tool'; expected"
    ):
        render(QUESTION, tokenizer, chat_template="tool")
    nameless = several(tool=TEMPLATE, rag=TEMPLATE)
    with pytest.raises(ConfigurationError, match=r"templates rag, tool, and data\.chat_template is not set; expected"):
        render(QUESTION, nameless)
    assert read(nameless, render(QUESTION, nameless, use_chat_template=False)) == "<bos>1 + 1?"


def test_a_name_without_templates_to_choose_from() -> None:
    rendered = render_all(
        [QUESTION],
        make_tokenizer(TEMPLATE),
        {None: several(rag="R" + TEMPLATE)},
        max_prompt_tokens=50,
        style=PromptStyle(chat_template="rag"),
    )
    assert rendered.prompts[0].teacher_tokens is not None
    with pytest.raises(ConfigurationError, match=r"data\.chat_template is 'rag', but no tokenizer of the run has"):
        render_all(
            [QUESTION], make_tokenizer(TEMPLATE), {}, max_prompt_tokens=50, style=PromptStyle(chat_template="rag")
        )


def test_closing_text_of_templates_of_every_kind() -> None:
    closed = "{% for m in messages %}<|user|>{{ m.content }}<eos>{% endfor %}" + ASSISTANT
    assert closing_text(make_tokenizer(closed)) == "<eos>"
    assert closing_text(make_tokenizer(PARTS)) == ""
    assert closing_text(several(rag=closed), "rag") == "<eos>"
    assert closing_text(make_tokenizer("{{ 1 // 0 }}")) is None
    assert closing_text(make_tokenizer()) is None


def test_a_system_message_that_the_template_refuses() -> None:
    with pytest.raises(DataError, match=r"refuses problem q/1 \(no system role\)"):
        render(CHAT, make_tokenizer(NO_SYSTEM))
