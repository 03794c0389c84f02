"""Reads problems from the rows of a file or of a data set on the Hugging Face hub (`sources.py`).

A problem is what is asked and, where it is known, the right answer. Nothing here knows of tokens (`chat.py`) or of what
makes an answer right (`verifiers.py`). Nothing is dropped, shuffled or made unique: rows keep the order of their file,
and what cannot be used is refused with its row.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks.sources import Row, WrittenFloat, check_text, column_names, excerpt, rows_of, short_name

__all__ = ["Columns", "Message", "Privilege", "Problem", "load_problems"]

logger = logging.getLogger(__name__)

Message = dict[str, Any]

DEFAULT_SPLIT = "train"
DEFAULT_PROMPT_COLUMN = "problem"
DEFAULT_ANSWER_COLUMN = "answer"
DEFAULT_PRIVILEGED_TEMPLATE = "{prompt}\n\n{privileged}"
# The layout that verl's data sets share (DAPO-Math-17k among them): chat messages, and the answer one level down.
VERL_PROMPT_COLUMN = "prompt"
VERL_ANSWER_COLUMN = "reward_model.ground_truth"

_MISSING = object()
_MAX_PLAIN_EXPONENT = 20  # a float beyond it keeps its exponent: 6.02E+23


@dataclass(frozen=True)
class Privilege:
    """What a teacher reads and the student does not.     (OPSD, arXiv 2601.18734; SDFT's template in TRL)

    Fields:
      column: text such as a solution, put beside the question by `template`; None = there is none.
      template: with {prompt} and {privileged}. Of a prompt in messages it replaces the last one of the user.
      teacher_prompt_column: all that the teacher reads, as a prompt column has it. It outranks `column` in rows that
        have it; None = there is none.
    """

    column: str | None = None
    template: str = DEFAULT_PRIVILEGED_TEMPLATE
    teacher_prompt_column: str | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("{prompt}", "{privileged}") if name not in self.template]
        if missing:
            raise ConfigurationError(
                f"data.privileged_template is {excerpt(self.template)}, without {missing[0]}; expected a text with "
                f"{{prompt}} and {{privileged}} in it, such as {DEFAULT_PRIVILEGED_TEMPLATE!r}."
            )

    @property
    def columns(self) -> list[str | None]:
        """The columns that are read."""
        return [self.column, self.teacher_prompt_column]

    def applied(self, prompt: str, privileged: str) -> str:
        """The template with both texts in it."""
        texts = {"{prompt}": prompt, "{privileged}": privileged}
        return re.sub(r"\{prompt\}|\{privileged\}", lambda found: texts[found[0]], self.template)


NO_PRIVILEGE = Privilege()


@dataclass(frozen=True)
class Problem:
    """What is asked, and the right answer where it is known.

    Fields:
      id: names the problem in reports; unique within one file.
      prompt: plain text, or chat messages, the last of which is not the assistant's. Each has text as "role" and as
        "content", and whatever else its row has for a template to read, such as "tool_calls".
      answer: the right answer as text, verbatim ("142.0" stays "142.0"); None = not known or not asked for.
      teacher: which of several teachers answers for it; None = the row names none, or no column was read.
      teacher_prompt: what a teacher reads in place of `prompt`; None = the same.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str | None = None
    teacher: str | None = None
    teacher_prompt: str | tuple[Message, ...] | None = None

    @property
    def for_teacher(self) -> Problem:
        """The problem as it is put to a teacher."""
        return self if self.teacher_prompt is None else replace(self, prompt=self.teacher_prompt)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as chat messages: plain text becomes one message of the user."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt

    @property
    def text(self) -> str:
        """The prompt as a person reads it: the plain text, or the messages' contents, one after the other."""
        return self.prompt if isinstance(self.prompt, str) else "\n\n".join(m["content"] for m in self.prompt)


@dataclass(frozen=True)
class Columns:
    """Which columns of a data set are read. A dot steps into nested values.

    Fields:
      prompt: the question, as text or as a list of {"role", "content"} messages (also as the JSON text of such a list;
        what else a message has is for the chat template).
      answer: the right answer; None or "" = no answers wanted.
      teacher: the name of the row's teacher, where it has one; None = no teacher is asked for.
      privilege: what the teacher alone reads.
    """

    prompt: str = DEFAULT_PROMPT_COLUMN
    answer: str | None = DEFAULT_ANSWER_COLUMN
    teacher: str | None = None
    privilege: Privilege = NO_PRIVILEGE


DEFAULT_COLUMNS = Columns()


def load_problems(
    path: str | Path,
    columns: Columns = DEFAULT_COLUMNS,
    *,
    split: str = DEFAULT_SPLIT,
    limit: int | None = None,
    max_characters: int | None = None,
) -> list[Problem]:
    """All problems of a file or hub data set, in its order.

    Files in verl's layout need no column names: if the columns of prompt and answer are left at their defaults, a file
    without a `problem` column that has `prompt` and `reward_model.ground_truth` is read through those two, and the log
    says so.

    Args:
        path: a .jsonl, .json (a list of objects) or .parquet file; any other name is a hub data set, "owner/name" or
          "owner/name:configuration".
        columns: what is read of a row.
        split: which split of a hub data set; files have none.
        limit: read the first so many problems only.
        max_characters: of a text with more, the first so many and one are kept, so that a few bytes of a compressed
          file do not fill the memory with text that `render_all` drops as too long.
    Returns:
        At least one problem. Ids are those of the `id` column if every row read has one and no two are the same;
        otherwise "<file or data set name>/<row>" with rows counted from 0.
    Raises:
        DataError: missing, empty or unreadable file, or a row that cannot be used; the message names the row.
        ConfigurationError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(
            f"data.limit is {limit}; expected at least 1 problem. Leave data.limit out to read all of them."
        )
    source = str(path)
    name, layout_columns = short_name(source), (VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN)
    prompt_column, answer_column, teacher_column = columns.prompt, columns.answer, columns.teacher
    read = [
        prompt_column,
        answer_column,
        teacher_column,
        *columns.privilege.columns,
        DEFAULT_PROMPT_COLUMN,
        *layout_columns,
        "id",
    ]
    problems: list[Problem] = []
    own_ids: list[str | None] = []
    for place, row in rows_of(source, split, [column for column in read if column]):
        if not problems:
            prompt_column, answer_column = _columns_of_layout(source, row, prompt_column, answer_column)
        where = f"{source}, {place}"
        prompt = _prompt(_cell(row, prompt_column, "data.prompt_column", source, place), prompt_column, where)
        answer = None
        if answer_column:
            answer = _answer(_cell(row, answer_column, "data.answer_column", source, place), where)
            check_text(answer, f"column {answer_column!r}", where)
        own_ids.append(_name(row.get("id"), "id", where))
        teacher = _name(_lookup(row, teacher_column), teacher_column, where) if teacher_column else None
        teacher_prompt = _teacher_prompt(row, prompt, columns.privilege, source, place)
        if max_characters is not None:
            prompt = _beginning(prompt, max_characters + 1)
            teacher_prompt = None if teacher_prompt is None else _beginning(teacher_prompt, max_characters + 1)
        problems.append(Problem(f"{name}/{len(problems)}", prompt, answer, teacher or None, teacher_prompt))
        if len(problems) == limit:
            break
    if not problems:
        raise DataError(
            f"{source} has no rows; expected at least one problem. Check that data.path names the right file"
            " and that it was written completely."
        )
    if None in own_ids or len(set(own_ids)) < len(own_ids):
        return problems
    return [replace(problem, id=str(own_id)) for own_id, problem in zip(own_ids, problems, strict=True)]


def _teacher_prompt(
    row: Row, prompt: str | tuple[Message, ...], privilege: Privilege, source: str, place: str
) -> str | tuple[Message, ...] | None:
    """What a teacher reads of a row in place of its prompt; None = the prompt.

    Raises:
      DataError: the row has nothing that the teacher alone could read.
    """
    own, column, where = privilege.teacher_prompt_column, privilege.column, f"{source}, {place}"
    if own is not None and (column is None or _lookup(row, own) not in (None, _MISSING)):
        return _prompt(_cell(row, own, "data.teacher_prompt_column", source, place), own, where)
    if column is None:
        return None
    text = _as_text(_cell(row, column, "data.privileged_column", source, place))
    if text is None or not text.strip():
        raise DataError(
            f"{where} has nothing that can be read in column {column!r}; expected text that only the teacher reads. "
            "Without it the teacher would be asked the student's own question. Complete or remove the row."
        )
    check_text(text, f"column {column!r}", where)
    if isinstance(prompt, str):
        return privilege.applied(prompt, text)
    users = [number for number, message in enumerate(prompt) if message["role"] == "user"]
    if not users:
        raise DataError(
            f"{where} has no message of the user, to which the text in column {column!r} is added. Give the row a "
            "prompt for the teacher: data.teacher_prompt_column."
        )
    asked = prompt[users[-1]]
    told = {**asked, "content": privilege.applied(asked["content"], text)}
    return (*prompt[: users[-1]], told, *prompt[users[-1] + 1 :])


def _beginning(prompt: str | tuple[Message, ...], num_characters: int) -> str | tuple[Message, ...]:
    if isinstance(prompt, str):
        return prompt[:num_characters]
    return tuple({**message, "content": message["content"][:num_characters]} for message in prompt)


def _columns_of_layout(source: str, row: Row, prompt_column: str, answer_column: str | None) -> tuple[str, str | None]:
    """The columns to read: those asked for, or verl's where only the defaults were and they are not there."""
    asked = (prompt_column, answer_column or DEFAULT_ANSWER_COLUMN) != (DEFAULT_PROMPT_COLUMN, DEFAULT_ANSWER_COLUMN)
    has_default = _lookup(row, DEFAULT_PROMPT_COLUMN) is not _MISSING
    is_verl = all(_lookup(row, column) is not _MISSING for column in (VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN))
    if asked or has_default or not is_verl:
        return prompt_column, answer_column
    logger.info("%s has verl's layout: reading %s and %s", source, VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN)
    return VERL_PROMPT_COLUMN, VERL_ANSWER_COLUMN if answer_column else answer_column


def _lookup(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _name(value: Any, column: str, where: str) -> str | None:
    """A row's id, or the teacher that it names; None = nothing is there."""
    if value is None or value is _MISSING:
        return None
    name = str(value)
    check_text(name, f"column {column!r}", where)
    return name


def _cell(row: Row, column: str, key: str, source: str, place: str) -> Any:
    value, where = _lookup(row, column), f"{source}, {place}"
    if value is _MISSING:
        names = column_names(source, row)
        nearest = difflib.get_close_matches(column, names, n=1)
        remedy = f"did you mean {nearest[0]!r}? Set {key} to it" if nearest else f"set {key} to one of these"
        if key == "data.answer_column":
            remedy += ', or to "" if no answers are needed'
        raise DataError(
            f"{where} has no column {column!r}; it has {', '.join(map(repr, names)) or 'no columns'}."
            f" Expected {key} to name one; {remedy}."
        )
    if value is None:
        raise DataError(
            f"{where} has nothing (null) in column {column!r}; expected a value in every row."
            f" Complete or remove the row, or set {key} to another column."
        )
    return _python_value(value)


def _python_value(value: Any) -> Any:
    """Lists, dicts and numbers of Python in place of those of NumPy or Arrow."""
    for convert in ("as_py", "tolist"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    return value


def _prompt(value: Any, column: str, where: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        messages = _messages_in_json(value)
        if messages is None:
            return _text(value, f"column {column!r}", where)
        value = messages
    if isinstance(value, Mapping) and all(isinstance(part, list) for part in value.values()):
        # how `datasets` returns a Sequence of dicts: one dict of lists
        value = [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise DataError(
            f"{where}, column {column!r} holds {excerpt(value)}; expected text, or a list of messages, each with text"
            ' under "role" and "content" (or with "tool_calls"). Set data.prompt_column to a column that has one.'
        )
    value = [{**_without_nulls(message), "content": _content_of(message)} for message in value]
    if not value or value[-1]["role"] == "assistant":
        found = "an assistant's message at its end" if value else "an empty list of messages"
        raise DataError(
            f"{where}, column {column!r} holds {found}; expected a conversation that waits for the assistant's answer."
            " Remove the answer from the messages, or set data.prompt_column to another column."
        )
    for message in value[:-1]:
        check_text(message["content"], f"a message of column {column!r}", where)
    for message in value:
        check_text(message["role"], f"a role of column {column!r}", where)
        for part in _texts_in({key: part for key, part in message.items() if key not in ("role", "content")}):
            check_text(part, f"another part of a message of column {column!r}", where)
    _text(value[-1]["content"], f"the last message of column {column!r}", where)
    return tuple(value)


def _messages_in_json(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("["):  # saves the attempt on almost every text
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_chat = isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)
    return value if is_chat else None


def _is_message(value: object) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str) or _content_of(value) is None:
        return False
    calls = value.get("tool_calls")
    return calls is None or (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls))


def _without_nulls(value: Any) -> Any:
    """Without what is null: Arrow gives every mapping of a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _texts_in(value: Any) -> Iterator[str]:
    """Every text in lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from (*_texts_in(key), *_texts_in(part))
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def _content_of(message: Mapping[str, Any]) -> str | None:
    """A message's text, also where it is the only part of a list, as data for models that see pictures have it.

    Several parts are no text: templates differ in what they write between them. Who calls a tool need not say anything.
    """
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text") if content[0].get("type") == "text" else None
    return content if isinstance(content, str) else None


def _text(text: str, what: str, where: str) -> str:
    if not text.strip():
        raise DataError(
            f"{where} has only white space in {what}; expected a question. Complete or remove the row,"
            " or set data.prompt_column to another column."
        )
    check_text(text, what, where)
    return text


def _answer(value: Any, where: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = _as_text(value)
    if text is None or not text.strip():
        raise DataError(
            f"{where} has {excerpt(value)} as its answer; expected text or a number. Complete or remove the row,"
            ' set data.answer_column to another column, or to "" if no answers are needed.'
        )
    return text


def _as_text(value: object) -> str | None:
    """Text as it stands, a truth value as JSON writes it, a number with all its digits; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, WrittenFloat):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float | Decimal):
        return None
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite():
        return None
    return f"{number:f}" if abs(number.adjusted()) <= _MAX_PLAIN_EXPONENT else str(number)
