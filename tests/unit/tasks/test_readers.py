from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.support.chat import CHAT, QUESTION, TEMPLATE, make_tokenizer, read
from tutelage.errors import DataError
from tutelage.tasks import DroppedPromptsWarning, Problem, PromptStyle, PromptWarning, readers, render, render_all
from tutelage.tasks.readers import PromptReader

USERS_ONLY = "{% for m in messages %}{% if m.role != 'system' %}<|user|>{{ m.content }}{% endif %}{% endfor %}"


def test_a_system_message_that_is_left_out_is_one_warning() -> None:
    with pytest.warns(PromptWarning) as caught:
        render_all([QUESTION, CHAT], make_tokenizer(USERS_ONLY), {}, max_prompt_tokens=50)
    assert [str(each.message) for each in caught] == [
        "the chat template of '' leaves out the system message of 1 of 2 prompts (such as problem q/1, 'Be kind.'), so"
        " that the model never reads it. Put the instruction into the question, or use a template that writes system"
        " messages."
    ]
    assert caught[0].filename == __file__
    with pytest.warns(PromptWarning, match=r"of 1 of 1 prompts \(such as problem q/0, 'Put it in a box\.'\)"):
        render(QUESTION, make_tokenizer(USERS_ONLY), system_prompt="Put it in a box.")


def test_student_and_teacher_are_warned_of_each() -> None:
    student, teacher = make_tokenizer(TEMPLATE), make_tokenizer(USERS_ONLY)
    teacher.name_or_path = "the teacher"
    with pytest.warns(PromptWarning, match="the chat template of 'the teacher' leaves out") as caught:
        render_all([QUESTION], student, {None: teacher}, max_prompt_tokens=50, style=PromptStyle("S."))
    assert len(caught) == 1


def test_prompts_that_were_rendered_before() -> None:
    rendered = Problem("q/3", "<|user|>1 + 1?<|assistant|>")
    with pytest.warns(PromptWarning, match=r"1 of 2 prompts hold special tokens .*such as '<\|user\|>' in problem q/3"):
        render_all([QUESTION, rendered], make_tokenizer(TEMPLATE), {}, max_prompt_tokens=50)
    with warnings.catch_warnings():  # there the text is the whole prompt
        warnings.simplefilter("error")
        render(rendered, make_tokenizer(TEMPLATE), use_chat_template=False)


def test_a_beginning_that_is_doubled() -> None:
    message = r"1 of 1 prompts begin with the beginning-of-sequence token .* twice \(such as problem q"
    with pytest.warns(PromptWarning, match=message):
        render(Problem("q", "<bos>1 + 1?"), make_tokenizer())
    with pytest.warns(PromptWarning, match=message):
        render(QUESTION, make_tokenizer("<bos>" + TEMPLATE))


def test_a_text_longer_than_any_prompt_may_be_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MIN_CHARACTERS", 100)
    read_texts: list[str] = []
    tokenizer = make_tokenizer()
    tokenise = type(tokenizer).__call__

    def noting(self: object, texts: list[str], **settings: object) -> Any:
        read_texts.extend(texts)
        return tokenise(self, texts, **settings)

    monkeypatch.setattr(type(tokenizer), "__call__", noting)
    long = Problem("long", "x" * 1000)
    message = r"1 of 2 prompts are longer than data\.max_prompt_tokens = 9 \(the longest has more than 117 characters\)"
    with pytest.warns(DroppedPromptsWarning, match=message):
        rendered = render_all([long, QUESTION], tokenizer, {}, max_prompt_tokens=9)
    assert rendered.problems == [QUESTION] and rendered.num_dropped == 1
    assert read_texts == ["1 + 1?"]
    with pytest.raises(DataError, match=r"all 1 prompts are longer .* = 9 \(the longest has more than 117 char"):
        render_all([long], tokenizer, {}, max_prompt_tokens=9)


def test_no_prompt_that_fits_is_dropped_for_its_characters() -> None:
    """The longest token bounds the characters of a prompt: 13 here, so that 5,042 of them may be a whole prompt."""
    tokenizer = make_tokenizer()
    assert max(map(len, tokenizer.get_vocab())) == 13
    problem = Problem("q", "<|assistant|>" * (readers.MIN_CHARACTERS // 13 + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)
        (prompt,) = render_all([problem], tokenizer, {}, max_prompt_tokens=6000).prompts
    assert len(prompt.student_tokens) == 1 + readers.MIN_CHARACTERS // 13 + 1


def test_many_problems_are_read_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(f"q/{n}", f"What is {n} + {n}?\n" * (n % 4 + 1)) for n in range(20)]
    alone = [render(problem, make_tokenizer(TEMPLATE)) for problem in problems]
    monkeypatch.setattr(readers, "BATCH_ROWS", 7)
    monkeypatch.setattr(readers, "BATCH_CHARACTERS", 150)
    together = render_all(problems, make_tokenizer(TEMPLATE), {None: make_tokenizer(TEMPLATE)}, max_prompt_tokens=200)
    assert [list(prompt.student_tokens) for prompt in together.prompts] == alone
    plain = render_all(problems, make_tokenizer(after="<eos>"), {}, max_prompt_tokens=200)
    assert [read(make_tokenizer(), p.student_tokens) for p in plain.prompts] == [f"<bos>{p.text}" for p in problems]


@pytest.mark.parametrize("text", ["half \ud83d", "NUL \0"])
def test_a_system_prompt_that_no_tokenizer_reads(text: str) -> None:
    with pytest.raises(DataError, match=r"the run has .* in data\.system_prompt"):
        render(QUESTION, make_tokenizer(TEMPLATE), system_prompt=text)


def test_a_teacher_is_read_once_more_only_where_it_may_read_otherwise() -> None:
    student = PromptReader(make_tokenizer(TEMPLATE))
    assert student.reads_as(PromptReader(make_tokenizer(TEMPLATE)))
    assert not student.reads_as(PromptReader(make_tokenizer(TEMPLATE + " ")))
    assert not student.reads_as(PromptReader(make_tokenizer(TEMPLATE), system_prompt="S"))
    assert not student.reads_as(PromptReader(make_tokenizer(TEMPLATE), chat_template_kwargs={"a": 1}))
    assert not student.reads_as(PromptReader(make_tokenizer(TEMPLATE), use_chat_template=False))
    assert not student.reads_as(PromptReader(make_tokenizer(TEMPLATE, before="")))
