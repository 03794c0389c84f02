from __future__ import annotations

import pytest
from tokenizers import normalizers

from tests.support.chat import CHAT, NO_SYSTEM, QUESTION, TEMPLATE, make_tokenizer, read
from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks import DroppedPromptsWarning, Problem, PromptStyle, render, render_all


def test_a_template_writes_messages_and_one_bos() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    ids = render(QUESTION, tokenizer)
    assert isinstance(ids, list)
    assert all(type(i) is int for i in ids)
    assert read(tokenizer, ids) == "<bos><|user|>1 + 1?<|assistant|>"
    assert read(tokenizer, render(CHAT, tokenizer)) == "<bos><|system|>Be kind.<|user|>1 + 1?<|assistant|>"


def test_a_system_prompt_is_put_in_front_or_in_the_place_of_the_problems_own() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    expected = "<bos><|system|>Think.<|user|>1 + 1?<|assistant|>"
    assert read(tokenizer, render(QUESTION, tokenizer, system_prompt="Think.")) == expected
    assert read(tokenizer, render(CHAT, tokenizer, system_prompt="Think.")) == expected


def test_template_keywords_pass_through_unless_they_are_ours() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    ids = render(QUESTION, tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert read(tokenizer, ids).endswith("<|assistant|>(no thinking)")
    with pytest.raises(ConfigurationError, match=r"data\.chat_template_kwargs sets tokenize; expected only names"):
        render(QUESTION, tokenizer, chat_template_kwargs={"tokenize": False})


def test_plain_text_without_a_template_or_when_asked_for() -> None:
    plain, chat = make_tokenizer(), make_tokenizer(TEMPLATE)
    assert read(plain, render(QUESTION, plain)) == "<bos>1 + 1?"
    assert read(chat, render(QUESTION, chat, use_chat_template=False)) == "<bos>1 + 1?"
    assert read(plain, render(QUESTION, plain, system_prompt="Think.")) == "<bos>Think.\n\n1 + 1?"


def test_an_eos_that_the_tokenizer_adds_is_taken_off_again() -> None:
    tokenizer = make_tokenizer(after="<eos>")
    assert read(tokenizer, tokenizer("1 + 1?")["input_ids"]) == "<bos>1 + 1?<eos>"
    assert read(tokenizer, render(QUESTION, tokenizer)) == "<bos>1 + 1?"
    written = make_tokenizer()
    assert read(written, render(Problem("a", "1 + 1?<eos>"), written)) == "<bos>1 + 1?<eos>"


def test_messages_need_a_template() -> None:
    message = r"problem q/1 consists of chat messages.*; expected plain text\. Set data\.prompt_column"
    with pytest.raises(DataError, match=message):
        render(CHAT, make_tokenizer())
    with pytest.raises(DataError, match=message):
        render(CHAT, make_tokenizer(TEMPLATE), use_chat_template=False)


def test_a_template_that_is_not_there_or_that_refuses() -> None:
    with pytest.raises(
        ConfigurationError, match=r"data\.use_chat_template is true, but .* has no chat template; expected"
    ):
        render(QUESTION, make_tokenizer(), use_chat_template=True)
    with pytest.raises(DataError, match=r"refuses problem q/1 \(no system role\).*system, user; expected roles"):
        render(CHAT, make_tokenizer(NO_SYSTEM))


def test_a_prompt_without_tokens_is_refused() -> None:
    tokenizer = make_tokenizer(before="")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("?", "")
    with pytest.raises(DataError, match=r"problem q/0 has no tokens .*; expected at least one"):
        render(Problem("q/0", "?"), tokenizer)


def test_teacher_tokens_are_none_where_both_read_the_same() -> None:
    rendered = render_all(
        [QUESTION, CHAT], make_tokenizer(TEMPLATE), {None: make_tokenizer(TEMPLATE)}, max_prompt_tokens=100
    )
    assert [prompt.teacher_tokens for prompt in rendered.prompts] == [None, None]
    alone = render_all([QUESTION], make_tokenizer(TEMPLATE), {}, max_prompt_tokens=100)
    assert alone.prompts == rendered.prompts[:1]
    assert (alone.problems, alone.num_dropped) == ([QUESTION], 0)


def test_each_side_reads_through_its_own_template_and_system_prompt() -> None:
    student, teacher = make_tokenizer(), make_tokenizer(TEMPLATE)
    rendered = render_all(
        [QUESTION],
        student,
        {None: teacher},
        max_prompt_tokens=100,
        style=PromptStyle(
            "S",
            teacher_system_prompt="T",
            chat_template_kwargs={"enable_thinking": True},
            teacher_chat_template_kwargs={"enable_thinking": False},
        ),
    )
    (prompt,) = rendered.prompts
    assert read(student, prompt.student_tokens) == "<bos>S\n\n1 + 1?"
    assert read(teacher, prompt.teacher_tokens) == "<bos><|system|>T<|user|>1 + 1?<|assistant|>(no thinking)"
    (same,) = render_all([QUESTION], student, {None: teacher}, max_prompt_tokens=100, style=PromptStyle("S")).prompts
    assert read(teacher, same.teacher_tokens) == "<bos><|system|>S<|user|>1 + 1?<|assistant|>"


def test_a_routed_teacher_reads_through_its_own_template() -> None:
    student, teacher = (
        make_tokenizer("S {{ messages[0]['content'] }}"),
        make_tokenizer("T {{ messages[0]['content'] }}"),
    )
    route = make_tokenizer("R {{ messages[0]['content'] }}")
    problems = [Problem("a", "one"), Problem("b", "one", teacher="code")]
    rendered = render_all(problems, student, {None: teacher, "code": route}, max_prompt_tokens=50)
    assert [read(student, prompt.teacher_tokens) for prompt in rendered.prompts] == ["T one", "R one"]
    assert [prompt.teacher_name for prompt in rendered.prompts] == [None, "code"]


def test_long_prompts_are_dropped_with_one_warning() -> None:
    problems = [Problem(f"p/{n}", "x" * n) for n in (5, 20, 3, 30)]
    with pytest.warns(DroppedPromptsWarning) as caught:
        rendered = render_all(problems, make_tokenizer(), {}, max_prompt_tokens=6)
    assert [str(w.message) for w in caught] == [
        "2 of 4 prompts are longer than data.max_prompt_tokens = 6 (the longest has 31 tokens) and are left out."
        " Raise data.max_prompt_tokens to keep them."
    ]
    assert caught[0].filename == __file__
    assert rendered.problems == [problems[0], problems[2]]
    assert [len(prompt.student_tokens) for prompt in rendered.prompts] == [6, 4]
    assert rendered.num_dropped == 2


def test_a_prompt_too_long_for_the_teacher_alone_is_dropped() -> None:
    problems = [Problem("a", "x"), Problem("b", "x" * 10)]
    with pytest.warns(DroppedPromptsWarning, match="1 of 2"):
        rendered = render_all(problems, make_tokenizer(), {None: make_tokenizer(TEMPLATE)}, max_prompt_tokens=12)
    assert rendered.problems == problems[:1]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"all 1 prompts are longer than data\.max_prompt_tokens = 3 \(the shortest has 7"
    ):
        render_all([QUESTION], make_tokenizer(), {}, max_prompt_tokens=3)
    with pytest.raises(DataError, match="there are no problems to render"):
        render_all([], make_tokenizer(), {}, max_prompt_tokens=3)


def test_a_teacher_with_the_same_template_reads_its_own_prompts() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    told = Problem("told", "1 + 1?", teacher_prompt="1 + 1? It is 2.")
    same, other = render_all([QUESTION, told], tokenizer, {None: tokenizer}, max_prompt_tokens=100).prompts
    assert same.teacher_tokens is None
    assert read(tokenizer, other.student_tokens) == "<bos><|user|>1 + 1?<|assistant|>"
    assert read(tokenizer, other.teacher_tokens) == "<bos><|user|>1 + 1? It is 2.<|assistant|>"
    with pytest.warns(DroppedPromptsWarning, match="1 of 2"):
        kept = render_all([QUESTION, told], tokenizer, {None: tokenizer}, max_prompt_tokens=len(other.student_tokens))
    assert kept.problems == [QUESTION], "what the teacher reads is never cut"
