"""A model that was trained to say how good an answer is: `AutoModelForSequenceClassification` with one output."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from tutelage.errors import ConfigurationError, DataError, RewardError
from tutelage.models import (
    DTYPES,
    ModelSource,
    SequenceScorer,
    load_sequence_scorer,
    load_tokenizer,
    meta_sequence_scorer,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from tutelage.paths import expanded_path
from tutelage.rewards.base import Answers, Judge, JudgeMemory, Reward, Setting
from tutelage.tasks import Problem
from tutelage.tasks.templates import ChatTemplate, chosen_template

__all__ = ["RewardModel"]

PROBE = Problem("probe", "What is 1 + 1?")


@dataclass(frozen=True)
class RewardModel(Reward):
    """The output of a reward model for the conversation of a problem and its answer.

    The model has its own tokenizer and chat template, which writes out the problem's messages and the answer as the
    assistant's. Its output is taken as it is; `weight` scales it, and `normalised_sum` or `normalised` do so within
    groups. A conversation that is longer than the model's context is not cut: it ends the run, which is saved.

    Fields:
      path: model directory or hub id.
      dtype: float32, bfloat16, float16 or float64.
      revision, trust_remote_code, allow_pickle, attention: as of [student].
      use_chat_template: False = problem and answer are given to the tokenizer as a pair of plain texts, as models
        without a template, such as encoders, are trained on.
      max_batch_tokens: most tokens in one forward, padding included.
    """

    path: str
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    attention: str | None = None
    use_chat_template: bool = True
    max_batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", expanded_path(self.path, "reward.path"))
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"reward.dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}.")
        if self.max_batch_tokens < 1:
            raise ConfigurationError(f"reward.max_batch_tokens is {self.max_batch_tokens}; expected 1 token or more.")

    def check(self, setting: Setting) -> dict[str, Any]:
        tokenizer = load_tokenizer(self._source)
        template = self._template(tokenizer, setting)
        scorer = meta_sequence_scorer(self._source, tokenizer)
        self._tokens(scorer, template, PROBE, "2")  # a template that fails, or asks for the date, shows it here
        text = "" if template is None else template.text
        return {
            "weights": weights_fingerprint(self._source),
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "template": "sha256 " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        }

    def preview(self, setting: Setting, problem: Problem, response: str) -> str:
        tokenizer = load_tokenizer(self._source)
        scorer = meta_sequence_scorer(self._source, tokenizer)
        return str(tokenizer.decode(self._tokens(scorer, self._template(tokenizer, setting), problem, response)))

    def memory(self, num_answers: int, longest: int) -> JudgeMemory:
        scorer = meta_sequence_scorer(self._source, load_tokenizer(self._source))
        return JudgeMemory(scorer.weight_bytes, scorer.reading_bytes(num_answers, longest, self.max_batch_tokens))

    def opened(self, setting: Setting) -> Judge:
        tokenizer = load_tokenizer(self._source)
        template = self._template(tokenizer, setting)
        scorer = load_sequence_scorer(self._source, tokenizer, device=setting.device)

        def judge(answers: Answers) -> Tensor:
            pairs = zip(answers.problems, answers.responses, strict=True)
            try:
                sequences = [self._tokens(scorer, template, problem, response) for problem, response in pairs]
            except DataError as problem:
                raise RewardError(f"the reward {self.label!r} cannot read an answer: {problem}") from problem
            self._check_fits(sequences, scorer, answers)
            return scorer.scores(sequences, self.max_batch_tokens)

        return judge

    @property
    def _source(self) -> ModelSource:
        return ModelSource(**{item.name: getattr(self, item.name) for item in fields(ModelSource)})

    def _template(self, tokenizer: Any, setting: Setting) -> ChatTemplate | None:
        if not self.use_chat_template:
            return None
        text = chosen_template(tokenizer, None)
        if text is None:
            raise ConfigurationError(
                f"reward.path is {self.path!r}, whose tokenizer has no chat template to write out a problem and its "
                "answer with. Set reward.use_chat_template = false if the model was trained on pairs of plain texts, "
                "or give it the template that it was trained with."
            )
        return ChatTemplate(tokenizer, text, clock=setting.clock, add_generation_prompt=False)

    def _tokens(
        self, scorer: SequenceScorer, template: ChatTemplate | None, problem: Problem, response: str
    ) -> list[int]:
        """The conversation as the model reads it."""
        if template is None:
            return scorer.tokens_of_pair(problem.text, response)
        messages = [*problem.messages, {"role": "assistant", "content": response}]
        (text,) = template.write_out([(problem.id, messages)])
        return scorer.tokens_of(text)

    def _check_fits(self, sequences: Sequence[Sequence[int]], scorer: SequenceScorer, answers: Answers) -> None:
        for tokens, problem in zip(sequences, answers.problems, strict=True):
            if scorer.context is not None and len(tokens) > scorer.context:
                raise RewardError(
                    f"problem {problem.id} and its answer have {len(tokens)} tokens for the reward model {self.path!r},"
                    f" which reads {scorer.context} at most{scorer.context.remark}. Lower rollout.max_new_tokens or "
                    "data.max_prompt_tokens, or use a reward model with a longer context."
                )
