"""Turns problems into the token ids that the student and the teacher read.

Each side reads a problem through its own chat template, or as plain text where it has none. What is too long is
dropped here, once and aloud, so that nothing later has to cut a question in half. Padding and batching are not here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks.problems import Message, Problem
from tutelage.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DroppedPromptsWarning", "RenderedPrompts", "closing_text", "render", "render_all"]

_NOT_THE_USERS = {
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "return_dict",
    "return_tensors",
    "padding",
}


class DroppedPromptsWarning(UserWarning):
    """Some prompts are longer than `data.max_prompt_tokens` and take no part."""


@dataclass(frozen=True)
class RenderedPrompts:
    """Problems with the tokens that stand for them.

    Fields:
      problems, prompts: of equal length and in the order of the data.
      num_dropped: how many more there were, too long for `max_prompt_tokens`.
    """

    problems: list[Problem]
    prompts: list[Prompt]
    num_dropped: int


def render(
    problem: Problem,
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a problem, up to where the answer begins.

    With a chat template the ids are the template's and nothing else (templates write their own BOS). Without one they
    are the tokenizer's for "system prompt, blank line, text" with its usual special tokens, less an EOS at the end:
    after that, a model has nothing to answer.

    Args:
        problem: plain text or chat messages.
        tokenizer: of the model that will read the prompt.
        system_prompt: put in front; takes the place of the problem's own system message, if it has one, because what a
          run states outranks what its data brought along. None leaves the problem's own.
        use_chat_template: None = if the tokenizer has one.
        chat_template_kwargs: handed to the template, such as {"enable_thinking": False} for Qwen3.
    Returns:
        At least one id.
    Raises:
        ConfigurationError: a template is asked for and there is none, or a keyword is not the user's to set.
        DataError: chat messages without a template to write them out, or a template that refuses them.
    """
    has_template = tokenizer.chat_template is not None
    if use_chat_template and not has_template:
        raise ConfigurationError(
            f"data.use_chat_template is true, but the tokenizer {tokenizer.name_or_path!r} has no chat template;"
            " expected the tokenizer of an instruction-tuned model."
            " Set data.use_chat_template to false, or use another tokenizer."
        )
    if has_template and use_chat_template is not False:
        ids = _through_template(problem, tokenizer, system_prompt, chat_template_kwargs or {})
    else:
        ids = _as_plain_text(problem, tokenizer, system_prompt)
    if not ids:
        raise DataError(
            f"problem {problem.id} has no tokens for the tokenizer {tokenizer.name_or_path!r}; expected at least one."
            " Remove the problem, or give it more text."
        )
    return ids


def closing_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What a chat template writes behind an assistant's answer; None without a template, or if it refuses one."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return None
    answer = "the answer"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError:
        return None
    before, _, closing = text.rpartition(answer)
    return closing if before else None


def _through_template(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None, keywords: Mapping[str, Any]
) -> list[int]:
    from jinja2 import TemplateError

    if ours := sorted(_NOT_THE_USERS.intersection(keywords)):
        raise ConfigurationError(
            f"data.chat_template_kwargs sets {', '.join(ours)}; expected only names that the chat template itself"
            " reads, such as enable_thinking. Remove the others."
        )
    messages: list[Message] = list(problem.messages)
    if system_prompt is not None:
        messages = [{"role": "system", "content": system_prompt}] + [m for m in messages if m["role"] != "system"]
    try:
        ids = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **keywords
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} refuses problem {problem.id} ({error}), whose messages"
            f" are of {roles}; expected roles that it knows. If it knows no system role, leave data.system_prompt out"
            " and put the instruction into the question; data.use_chat_template = false writes plain text instead."
        ) from error
    return list(ids)


def _as_plain_text(problem: Problem, tokenizer: PreTrainedTokenizerBase, system_prompt: str | None) -> list[int]:
    if not isinstance(problem.prompt, str):
        raise DataError(
            f"problem {problem.id} consists of chat messages, but no chat template of {tokenizer.name_or_path!r} writes"
            " them out; expected plain text. Set data.prompt_column to a column with text, use a tokenizer with a chat"
            " template, or leave data.use_chat_template out if it is false."
        )
    text = problem.prompt if system_prompt is None else f"{system_prompt}\n\n{problem.prompt}"
    ids: list[int] = list(tokenizer(text, add_special_tokens=True)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id:
        bare: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if bare[-1:] != ids[-1:]:  # the tokenizer put it there, not the text
            ids.pop()
    return ids


def render_all(
    problems: Sequence[Problem],
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_prompt_tokens: int,
    system_prompt: str | None = None,
    teacher_system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    teacher_chat_template_kwargs: Mapping[str, Any] | None = None,
    route_tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
) -> RenderedPrompts:
    """Every problem as student and teacher read it, without those too long for either.

    Args:
        teacher_tokenizer: None = there is no teacher, or it reads what the student reads.
        max_prompt_tokens: longest prompt that is kept, on either side.
        teacher_system_prompt, teacher_chat_template_kwargs: None = the student's.
        route_tokenizers: further teachers' tokenizers by name; a problem that names a teacher is read through that one.
        use_chat_template: for both sides; None = each side uses its template if it has one.
        (the others as in `render`)
    Returns:
        `teacher_tokens` of a prompt is None where the teacher reads the same ids as the student.
    Raises:
        DataError: no problems at all, or none short enough.
    Warns:
        DroppedPromptsWarning: once, with how many of how many are too long and the longest.
    """
    if not problems:
        raise DataError("there are no problems to render; expected at least one. Check data.path and data.limit.")

    def student_ids(problem: Problem) -> list[int]:
        return render(
            problem,
            student_tokenizer,
            system_prompt=system_prompt,
            use_chat_template=use_chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )

    def teacher_ids(problem: Problem) -> list[int]:
        tokenizer = teacher_tokenizer if problem.teacher is None else (route_tokenizers or {})[problem.teacher]
        assert tokenizer is not None
        return render(
            problem,
            tokenizer,
            system_prompt=system_prompt if teacher_system_prompt is None else teacher_system_prompt,
            use_chat_template=use_chat_template,
            chat_template_kwargs=(
                chat_template_kwargs if teacher_chat_template_kwargs is None else teacher_chat_template_kwargs
            ),
        )

    prompts = []
    for problem in problems:
        student = student_ids(problem)
        teacher = student if teacher_tokenizer is None else teacher_ids(problem)
        prompts.append(Prompt(student, None if teacher == student else teacher, teacher_name=problem.teacher))
    return _without_long_ones(problems, prompts, max_prompt_tokens)


def _without_long_ones(problems: Sequence[Problem], prompts: list[Prompt], max_prompt_tokens: int) -> RenderedPrompts:
    lengths = [max(len(prompt.student_tokens), len(prompt.teacher_tokens or ())) for prompt in prompts]
    kept = [index for index, length in enumerate(lengths) if length <= max_prompt_tokens]
    num_dropped = len(prompts) - len(kept)
    if not kept:
        raise DataError(
            f"all {len(prompts)} prompts are longer than data.max_prompt_tokens = {max_prompt_tokens} (the shortest has"
            f" {min(lengths)} tokens, the longest {max(lengths)}); expected at least one that fits."
            " Raise data.max_prompt_tokens."
        )
    if num_dropped:
        warnings.warn(
            f"{num_dropped} of {len(prompts)} prompts are longer than data.max_prompt_tokens = {max_prompt_tokens} (the"
            f" longest has {max(lengths)} tokens) and are left out. Raise data.max_prompt_tokens to keep them.",
            DroppedPromptsWarning,
            stacklevel=3,
        )
    return RenderedPrompts([problems[index] for index in kept], [prompts[index] for index in kept], num_dropped)
