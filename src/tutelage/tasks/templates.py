"""Writes chat messages out as text, through the chat template that comes with a tokenizer.

A template is a foreign program: it can fail, run for ever, ask for the date, or leave out a message. Each of these is
detected here. `readers.py` uses the text.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from typing import TYPE_CHECKING, Any

from tutelage.errors import ConfigurationError, DataError, in_short
from tutelage.tasks.clock import CALL, TemplateClock, seen_by_templates
from tutelage.tasks.problems import Message
from tutelage.tasks.time_bound import OutOfTime, bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "check_keywords", "chosen_template", "closing_text", "comes_out"]

SECONDS = 5.0  # for one prompt; usual are less than 0.001

# Arguments of the function that runs a template, which would change what becomes of its text, and names that are taken.
_NOT_THE_TEMPLATES = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "conversations",
    "generation_indices",
    "kwargs",
    "max_length",
    "messages",
    "padding",
    "raise_exception",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "self",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
_PARTS_AS_TEXT = ("{'type': 'text'", '{"type": "text"', '{"text": ')
_LISTS_OF_TABLES = {"tools", "documents"}  # arguments too, but for the template


def chosen_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The text of a tokenizer's chat template, of several the one called `name`; None where it has none.

    Raises:
      ConfigurationError: there are several, and none is called so, or none was asked for and none is the default.
    """
    templates: Any = tokenizer.chat_template
    if not isinstance(templates, Mapping):
        return None if templates is None else str(templates)
    wanted = "default" if name is None else name
    if wanted not in templates:
        raise ConfigurationError(
            f"the tokenizer {tokenizer.name_or_path!r} has the chat templates {', '.join(sorted(templates))}, and "
            f"data.chat_template {'is not set' if name is None else f'is {name!r}'}; expected one of these names."
        )
    return str(templates[wanted])


def check_keywords(tokenizer: PreTrainedTokenizerBase, keywords: Mapping[str, Any], key: str) -> None:
    """Refuse keywords that are not for the template to read, or that would not reach it as they were written.

    `tools` and `documents` are for the template; every other argument of `apply_chat_template` is ours to give.

    Raises:
      ConfigurationError: names them, and the configuration key that they stand in.
    """
    arguments = set(inspect.signature(tokenizer.apply_chat_template).parameters)
    taken = (arguments | _NOT_THE_TEMPLATES) - _LISTS_OF_TABLES
    if ours := sorted(taken.intersection(keywords)):
        raise ConfigurationError(
            f"{key} sets {', '.join(ours)}; expected only names that the chat template itself reads, such as "
            "enable_thinking. Remove the others."
        )
    if CALL in keywords:
        raise ConfigurationError(f"{key} sets {CALL}, which is the clock of chat templates. Set data.template_date.")
    for name in sorted(_LISTS_OF_TABLES.intersection(keywords)):
        value = keywords[name]
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise ConfigurationError(
                f"{key} sets {name} to {value!r}; expected a list of tables, each of which describes one. Correct it, "
                "or leave it out."
            )
    if wrong := [name for name, value in keywords.items() if _holds_a_date(value)]:
        raise ConfigurationError(
            f"{key}.{wrong[0]} holds a date, and chat templates read text, numbers, lists and tables. Put it in quotes."
        )


def _holds_a_date(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_a_date, value.values()))
    return any(map(_holds_a_date, value)) if isinstance(value, list) else isinstance(value, date | time)


@dataclass
class ChatTemplate:
    """A tokenizer's template with what it is given beside the messages.

    Fields:
      tokenizer: whose template it is.
      text: the template.
      keywords: handed to it.
      clock: the date, if it asks for it.
      add_generation_prompt: the text ends where the assistant's answer begins; False = after the last message.
    """

    tokenizer: PreTrainedTokenizerBase
    text: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    clock: TemplateClock = field(default_factory=TemplateClock)
    add_generation_prompt: bool = True
    _wants_parts: bool | None = None

    def write_out(self, problems: Sequence[tuple[str, Sequence[Message]]]) -> list[str]:
        """The text of each problem (its id and its messages) up to where the assistant's answer begins.

        Templates of models that also see pictures read a message's content as a list of parts. They are noticed by the
        first problem, whose question is not in the text otherwise, and get one part of text per message.

        Raises:
          DataError: the template fails, takes too long, or writes a problem out without its question.
        """
        texts: list[str] = []
        with seen_by_templates(self.clock, self.text):
            try:
                with bounded(SECONDS) as step:
                    for identity, messages in problems:
                        step()
                        texts.append(self._checked(identity, messages))
            except OutOfTime:
                identity = problems[min(len(texts), len(problems) - 1)][0]
                raise DataError(
                    f"the chat template of {self.tokenizer.name_or_path!r} has not written out problem {identity} "
                    f"within {SECONDS:g} seconds; expected a template that ends. Correct its loops, or set "
                    "data.use_chat_template = false for plain text."
                ) from None
        return texts

    def _checked(self, identity: str, messages: Sequence[Message]) -> str:
        if self._wants_parts is None:
            self._wants_parts = self._loses(messages, as_parts=False) and not self._loses(messages, as_parts=True)
        text = self._written(identity, messages, self._wants_parts)
        if (lost := self._lost(messages, text)) is not None:
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} writes out problem {identity} without its "
                f"question: {lost[:80]!r} is not in {text[:200]!r}; expected the whole text of every message that is "
                "not the assistant's, and the name of every tool that it calls. Correct the template, or set "
                "data.use_chat_template = false for plain text."
            )
        return text

    def _lost(self, messages: Sequence[Message], text: str) -> str | None:
        """The first message that is not in the text; earlier answers of an assistant may be cut, as of their thinking.

        Of a call of a tool the tool's name must be there: templates write calls in many forms, and some not at all. A
        reward model, which reads answers to the end, may do without the calls before them.
        """
        parts = [message["content"] for message in messages if message["role"] not in ("system", "assistant")]
        if self.add_generation_prompt:
            parts += _called(messages)
        return next((part for part in parts if not comes_out(part, text)), None)

    def _loses(self, messages: Sequence[Message], *, as_parts: bool) -> bool:
        """Whether the question is lost in this form; a template that fails has lost it.

        A template that writes out the list of parts itself, brackets and all, has not read them.
        """
        try:
            text = self._run(messages, as_parts)
            is_list = as_parts and any(mark in text for mark in _PARTS_AS_TEXT)
            return is_list or self._lost(messages, text) is not None
        except Exception:  # the error is reported where the prompt is written out
            return True

    def _written(self, identity: str, messages: Sequence[Message], as_parts: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        name = self.tokenizer.name_or_path
        try:
            return self._run(messages, as_parts)
        except TemplateSyntaxError as error:
            raise ConfigurationError(
                f"the chat template of {name!r} is no Jinja template ({in_short(error)}, line {error.lineno}). Correct "
                "it, or set data.use_chat_template = false for plain text."
            ) from error
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            if type(error) is TemplateError:  # the template's own refusal
                what = (
                    f"refuses problem {identity} ({in_short(error)}), whose messages are of {roles}; expected roles "
                    "that it knows. If it knows no system role, leave data.system_prompt out and put the instruction "
                    "into the question; data.use_chat_template = false writes plain text instead."
                )
            else:
                what = (
                    f"fails on problem {identity} ({type(error).__name__}: {in_short(error)}), whose messages are of "
                    f"{roles}; expected text. Give what it misses in data.chat_template_kwargs, correct it, or set "
                    "data.use_chat_template = false for plain text."
                )
            raise DataError(f"the chat template of {name!r} {what}") from error

    def _run(self, messages: Sequence[Message], as_parts: bool, **options: Any) -> str:
        conversation: list[Any] = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if as_parts else dict(message)
            for message in messages
        ]
        if isinstance(self.tokenizer.chat_template, Mapping):
            options["chat_template"] = self.text
        options = {"add_generation_prompt": self.add_generation_prompt, **options}
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, **options, **self.keywords))


def closing_text(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> str | None:
    """What a chat template writes after an assistant's answer; None without a template, or if it refuses one."""
    text = chosen_template(tokenizer, name)
    if text is None:
        return None
    answer = "the answer"
    messages: list[Message] = [
        {"role": "user", "content": "a question"},
        {"role": "assistant", "content": answer},
    ]
    template = ChatTemplate(tokenizer, text)
    with seen_by_templates(template.clock, text):
        for as_parts in (False, True):
            try:
                with bounded(SECONDS):
                    written = template._run(messages, as_parts, add_generation_prompt=False)
            except (Exception, OutOfTime):  # whatever it is, this template does not write out an answer
                continue
            before, _, closing = written.rpartition(answer)
            if before:
                return closing
    return None


def _called(messages: Sequence[Message]) -> list[str]:
    """Names of the tools that are called."""
    calls = [call for message in messages for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    functions = [call.get("function", call) for call in calls]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    return [name for name in names if isinstance(name, str)]


def comes_out(content: str, text: str) -> bool:
    """Whether a message is in the text that a template wrote, in whatever form.

    White space may be stripped or set anew, and characters escaped (HTML, JSON) or put into another case. What must be
    there, in one piece, is the words.
    """
    bare = content.strip()
    if bare in text:
        return True
    if any(json.dumps(bare, ensure_ascii=as_ascii)[1:-1] in text for as_ascii in (False, True)):
        return True
    unescaped, words = html.unescape(text), _words(content)
    return "".join(bare.split()) in "".join(unescaped.split()) or (words.strip() != "" and words in _words(unescaped))


def _words(text: str) -> str:
    return " ".join(["", *re.findall(r"[^_\W]+", text.casefold()), ""])
