"""How one model reads problems: as text, through its chat template or plain, and then as token ids.

Some findings are counted on the way and become one warning each: system prompts that a template leaves out, prompts
that were rendered before, a doubled beginning.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks.clock import TemplateClock
from tutelage.tasks.problems import Message, Problem
from tutelage.tasks.sources import check_text
from tutelage.tasks.templates import ChatTemplate, check_keywords, chosen_template, comes_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptReader", "PromptWarning", "max_prompt_characters"]

# Read at a time: enough for a tokenizer that works in parallel, and few enough for what it notes of every token.
BATCH_ROWS, BATCH_CHARACTERS = 1024, 2**20
MIN_CHARACTERS = 2**16  # a text of so many is tokenised in no time, so that nothing shorter needs a guess
SHORTEST_SPECIAL = 3  # characters; a special token such as "!" stands in any text


class PromptWarning(UserWarning):
    """What a model reads is not what was written, as far as that can be seen."""


def max_prompt_characters(tokenizers: Iterable[PreTrainedTokenizerBase | None], max_tokens: int) -> int:
    """No text of more characters has so few tokens for all of them: a token stands for no more than the longest one."""
    longest = [max(map(len, tokenizer.get_vocab()), default=1) for tokenizer in tokenizers if tokenizer is not None]
    return max(MIN_CHARACTERS, max_tokens * min(longest, default=1))


@dataclass
class _Count:
    """How often something was seen, and where first."""

    number: int = 0
    example: str = ""

    def add(self, example: str) -> None:
        self.number, self.example = self.number + 1, self.example or example


@dataclass
class PromptReader:
    """One model's way of reading.

    Fields:
      tokenizer: of the model that will read the prompt.
      system_prompt: put in front; takes the place of the problem's own system message, if it has one, because what a
        run states outranks what its data brought along. None leaves the problem's own.
      use_chat_template: None = if the tokenizer has one.
      chat_template_kwargs: handed to the template, such as {"enable_thinking": False} for Qwen3.
      chat_template: which one, of a tokenizer with several.
      clock: the date for templates that ask for it.
      keywords_key: configuration key of `chat_template_kwargs`, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None = None
    use_chat_template: bool | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    clock: TemplateClock = field(default_factory=TemplateClock)
    keywords_key: str = "data.chat_template_kwargs"
    num_read: int = field(default=0, init=False)
    without_system: _Count = field(default_factory=_Count, init=False)
    with_special: _Count = field(default_factory=_Count, init=False)
    twice_begun: _Count = field(default_factory=_Count, init=False)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The template that is used; None = plain text.

        Raises:
          ConfigurationError: a template is asked for and there is none, or a keyword is not the user's to set.
        """
        if self.system_prompt is not None:
            check_text(self.system_prompt, "data.system_prompt", "the run")
        text = None if self.use_chat_template is False else chosen_template(self.tokenizer, self.chat_template)
        if text is None:
            if self.use_chat_template:
                raise ConfigurationError(
                    f"data.use_chat_template is true, but the tokenizer {self.tokenizer.name_or_path!r} has no chat "
                    "template; expected the tokenizer of an instruction-tuned model."
                    " Set data.use_chat_template to false, or use another tokenizer."
                )
            return None
        check_keywords(self.tokenizer, self.chat_template_kwargs, self.keywords_key)
        return ChatTemplate(self.tokenizer, text, self.chat_template_kwargs, self.clock)

    def reads_as(self, other: PromptReader) -> bool:
        """Whether this one reads every problem as the same tokens as `other`: the same text, and the same tokenizer."""
        mine, theirs = self.tokenizer, other.tokenizer
        return (
            type(mine) is type(theirs)
            and (None if self.template is None else self.template.text)
            == (None if other.template is None else other.template.text)
            and self.system_prompt == other.system_prompt
            and self.chat_template_kwargs == other.chat_template_kwargs
            and mine.special_tokens_map == theirs.special_tokens_map
            and getattr(mine, "backend_tokenizer", None) is not None
            and mine.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
        )

    def read(self, problems: Sequence[Problem], max_characters: int | None = None) -> list[list[int] | None]:
        """Token ids of each problem, up to where the answer begins; None = longer than `max_characters`.

        With a chat template the ids are the template's and nothing else (templates write their own BOS). Without one
        they are the tokenizer's for "system prompt, blank line, text" with its usual special tokens, less an EOS at the
        end: after that, a model has nothing to answer.
        """
        found: list[list[int] | None] = []
        for batch in _batches(problems):
            kept = [p for p in batch if max_characters is None or len(p.text) <= max_characters]
            texts = dict(zip(map(id, kept), self._texts(kept), strict=True))
            short = [p for p in kept if max_characters is None or len(texts[id(p)]) <= max_characters]
            tokens = dict(zip(map(id, short), self._tokens([texts[id(p)] for p in short]), strict=True))
            self._look_at(short, texts, tokens)
            found += [tokens.get(id(p)) for p in batch]
        return found

    def warn(self, stacklevel: int) -> None:
        """One warning for each thing to look at."""
        name, total = self.tokenizer.name_or_path, self.num_read
        if (lost := self.without_system).number:
            warnings.warn(
                f"the chat template of {name!r} leaves out the system message of {lost.number} of {total} prompts "
                f"(such as {lost.example}), so that the model never reads it. Put the instruction into the question, "
                "or use a template that writes system messages.",
                PromptWarning,
                stacklevel=stacklevel + 1,
            )
        if (special := self.with_special).number:
            warnings.warn(
                f"{special.number} of {total} prompts hold special tokens of {name!r} as text (such as "
                f"{special.example}); a prompt that was rendered before gets a second frame from the chat template. "
                "Give the question alone, or set data.use_chat_template = false if the text is the whole prompt.",
                PromptWarning,
                stacklevel=stacklevel + 1,
            )
        if (twice := self.twice_begun).number:
            warnings.warn(
                f"{twice.number} of {total} prompts begin with the beginning-of-sequence token of {name!r} twice (such "
                f"as {twice.example}). Remove it from the chat template, or from the text.",
                PromptWarning,
                stacklevel=stacklevel + 1,
            )

    def _messages(self, problem: Problem) -> list[Message]:
        if self.system_prompt is None:
            return list(problem.messages)
        others = [message for message in problem.messages if message["role"] != "system"]
        return [{"role": "system", "content": self.system_prompt}, *others]

    def _texts(self, problems: Sequence[Problem]) -> list[str]:
        if self.template is None:
            return [self._plain_text(problem) for problem in problems]
        return self.template.write_out([(problem.id, self._messages(problem)) for problem in problems])

    def _plain_text(self, problem: Problem) -> str:
        if not isinstance(problem.prompt, str):
            raise DataError(
                f"problem {problem.id} consists of chat messages, but no chat template of "
                f"{self.tokenizer.name_or_path!r} writes them out; expected plain text. Set data.prompt_column to a "
                "column with text, use a tokenizer with a chat template, or leave data.use_chat_template out if it is "
                "false."
            )
        return problem.prompt if self.system_prompt is None else f"{self.system_prompt}\n\n{problem.prompt}"

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        is_plain = self.template is None
        rows: list[list[int]] = [list(ids) for ids in self.tokenizer(texts, add_special_tokens=is_plain)["input_ids"]]
        end = self.tokenizer.eos_token_id
        for ids, text in zip(rows, texts, strict=True) if is_plain else ():
            if ids and ids[-1] == end:
                bare: list[int] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
                if bare[-1:] != ids[-1:]:  # the tokenizer put it there, not the text
                    ids.pop()
        return rows

    def _look_at(self, problems: Sequence[Problem], texts: Mapping[int, str], tokens: Mapping[int, list[int]]) -> None:
        self.num_read += len(problems)
        begin = self.tokenizer.bos_token_id
        for problem in problems:
            ids = tokens[id(problem)]
            if not ids:
                raise DataError(
                    f"problem {problem.id} has no tokens for the tokenizer {self.tokenizer.name_or_path!r}; expected "
                    "at least one. Remove the problem, or give it more text."
                )
            if begin is not None and ids[0] == begin and ids[1:2] == [begin]:
                self.twice_begun.add(f"problem {problem.id}")
            if self.template is None:
                continue
            if self._special_tokens is not None and (match := self._special_tokens.search(problem.text)):
                self.with_special.add(f"{match[0]!r} in problem {problem.id}")
            system = self.system_prompt or next((m["content"] for m in problem.messages if m["role"] == "system"), "")
            if not comes_out(system, texts[id(problem)]):
                self.without_system.add(f"problem {problem.id}, {system[:80]!r}")

    @cached_property
    def _special_tokens(self) -> re.Pattern[str] | None:
        """What no question holds: the tokenizer's special tokens, those that a template writes among them."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        long = sorted(name for name in names if len(name) >= SHORTEST_SPECIAL)
        return re.compile("|".join(map(re.escape, long))) if long else None


def _batches(problems: Sequence[Problem]) -> Iterator[list[Problem]]:
    """Problems in their order, so many that neither rows nor characters are too many at once."""
    batch: list[Problem] = []
    characters = 0
    for problem in problems:
        if batch and (len(batch) == BATCH_ROWS or characters + len(problem.text) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(problem)
        characters += len(problem.text)
    if batch:
        yield batch
