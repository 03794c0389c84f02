"""A teacher that is a server: it reads finished answers and says which tokens it would have found most probable.

A server reports log-probabilities of a few tokens per place, not of all. That is enough for a divergence on the
teacher's own top K with the rest of its mass as one more event, and for losses on sampled tokens. No teacher is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from tutelage.errors import ServerError
from tutelage.models import Vocabulary, teacher_named
from tutelage.rollout.scorers.base import Scorer, by_teacher
from tutelage.rollout.servers.server import Server
from tutelage.rollout.servers.vllm_answers import ServedModel, bytes_for, choice_of, prompt_places, served_model
from tutelage.types import Reading, Rollout

__all__ = ["RoutedScorer", "ServedScorer"]

# A tail is 1 minus float32 probabilities; less than this is lost in the difference.
MIN_TAIL = 2.0**-24
# In the exchange before the first step: most tokens, and nats by which two answers to the same request may differ, on
# average and for any single token. Two vLLMs of one model in bfloat16 stay below, two models do not.
TRIAL_TOKENS = 32
TRIAL_TOLERANCE, TRIAL_TOLERANCE_MAX = 0.1, 2.0


@dataclass(frozen=True)
class RoutedScorer:
    """Each rollout is read by its own teacher, on a server or here; all of them say what a server can say.

    Fields:
      scorers: by the name that a rollout calls its teacher, see `ModelSet`; each reports its teacher's own top K.
    """

    scorers: Mapping[str | None, Scorer]

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """See `Scorer`; entropies and hidden states, which a server does not have, are left out.

        Raises:
          ConfigurationError: a rollout names a teacher that is not there.
          ServerError: see `ServedScorer.score`.
        """
        scored = by_teacher(rollouts, lambda name, own: teacher_named(self.scorers, name).score(own))
        return list(map(_without_entropy, scored))


def _without_entropy(scored: Rollout) -> Rollout:
    assert scored.teacher is not None
    return replace(scored, teacher=replace(scored.teacher, entropy_T=None))


@dataclass(frozen=True)
class ServedScorer:
    """Scores rollouts through /v1/completions with `prompt_logprobs`.

    Stop ids that a server lists are one event at the student's id, as everywhere; one that it does not list is less
    probable than all that it lists, and stays in the tail.

    Fields:
      server: of the teacher.
      vocabulary: shared with the student.
      top_k: K, tokens per place whose log-probabilities are kept.
      num_rows: of the teacher's embedding table; it may name ids below that. None = the vocabulary's size.
    """

    server: Server
    vocabulary: Vocabulary
    top_k: int
    num_rows: int | None = None
    _names: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def check(
        self, prompt: Sequence[int], num_tokens: int, probe: tuple[str, Sequence[int]] | None = None
    ) -> ServedModel:
        """Compare the server with what the run expects of it, in one short exchange before anything is computed.

        Args:
          prompt: that a rollout may begin with.
          num_tokens: of the longest prompt with its answer.
          probe: a text and its tokens in our tokenizer.
        Returns:
          What the server says about its model.
        Raises:
          ServerError: no answer, a context that is too short, another vocabulary, numbers that are no
            log-probabilities, or other ones when the same is asked again.
        """
        model = served_model(self.server)
        limit = model.max_tokens
        if limit is not None and num_tokens + 1 > limit:
            raise ServerError(
                f"a prompt and its answer may have {num_tokens} tokens, and {self.server.url} reads {limit} less the "
                f"one that it must write. Start it with --max-model-len {num_tokens + 1}, or lower "
                "rollout.max_new_tokens."
            )
        # The last id: a server with fewer tokens refuses it.
        last = max(set(range(self.vocabulary.size)) - set(self.vocabulary.padding_ids))
        tokens = [*prompt[: max(1, min(TRIAL_TOKENS, num_tokens) - 1)], last]
        nothing = torch.zeros(len(tokens) - 1)
        trial = Rollout(tokens[:1], tokens[1:], nothing, Reading(nothing))
        one, other = self.score([trial, trial])
        assert one.teacher_logprobs is not None and other.teacher_logprobs is not None
        # Where both are -inf, they agree.
        gaps = torch.where(
            one.teacher_logprobs == other.teacher_logprobs, 0.0, one.teacher_logprobs - other.teacher_logprobs
        ).abs()
        if not (gaps.mean() <= TRIAL_TOLERANCE and gaps.max() <= TRIAL_TOLERANCE_MAX):
            raise ServerError(
                f"{self.server.url} was asked the same twice, and its log-probabilities differ by {gaps.mean():.3g} "
                f"nats on average and {gaps.max():.3g} at most; expected at most {TRIAL_TOLERANCE:g} and "
                f"{TRIAL_TOLERANCE_MAX:g}. If several servers answer at this address, all must serve the same model."
            )
        if probe is not None:
            self._check_tokenizer(*probe)
        return model

    def _check_tokenizer(self, text: str, tokens: Sequence[int]) -> None:
        """Compare how a text is cut into tokens, if the server has a route for it."""
        answer = self.server.post_if_there("/tokenize", {"prompt": text, "add_special_tokens": False})
        found = answer.get("tokens") if isinstance(answer, dict) else None
        path = self.server.key.removesuffix("server") + "path"
        if isinstance(found, list) and found != list(tokens):
            raise ServerError(
                f"{self.server.url} cuts a text into other tokens than {path}'s tokenizer does: it serves a "
                f"model with another vocabulary. Start it with the model of {path}, or correct {path}."
            )

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """Copies of the rollouts with what the teacher said of each token and its top K, in the same order.

        Args:
          keep_hidden: of no effect, since a server has no hidden states to give.
        Raises:
          ServerError: no answer within the bounds, or one that lacks something.
        """
        name = self._name()
        # Merged stop ids leave fewer events, so as many more tokens are asked for.
        num_asked = self.top_k + max(len(self.vocabulary.stop_ids) - 1, 0)
        prompts = [[*rollout.tokens_for_teacher, *rollout.response_tokens] for rollout in rollouts]
        bodies = [
            {
                "model": name,
                "prompt": prompt,
                "prompt_logprobs": num_asked,
                "max_tokens": 1,
                "temperature": 0.0,
                "add_special_tokens": False,
            }
            for prompt in prompts
        ]
        longest = max((len(prompt) for prompt in prompts), default=0)
        answers = self.server.post_all("/v1/completions", bodies, max_bytes=bytes_for(longest * (num_asked + 1)))
        return [
            self._scored(rollout, answer, name, num_asked) for rollout, answer in zip(rollouts, answers, strict=True)
        ]

    def _name(self) -> str:
        """Of the model that is served, which must be the same throughout a run."""
        name = served_model(self.server).name
        if self._names and name != self._names[0]:
            raise ServerError(
                f"{self.server.url} serves {name!r} now, and {self._names[0]!r} before; a teacher must stay the same. "
                "Start the server with the model that it had."
            )
        self._names[:] = [name]
        return name

    def _scored(self, rollout: Rollout, answer: object, name: str, num_asked: int) -> Rollout:
        tokens, first = [*rollout.tokens_for_teacher, *rollout.response_tokens], len(rollout.tokens_for_teacher)
        where = f"{self.server.url}/v1/completions"
        choice = choice_of(answer, where, name, len(tokens))
        places = prompt_places(choice, where, tokens, first, num_asked, self.num_rows or self.vocabulary.size)
        own, ids_TK, logprobs_TK, tail_T = [], [], [], []
        for place, token in zip(places, rollout.response_tokens, strict=True):
            known = self._events(place)
            event = self.vocabulary.stop_id if token in self.vocabulary.stop_ids else token
            assert event is not None
            own.append(known[event])
            top = sorted(known.items(), key=lambda item: (-item[1], item[0]))[: self.top_k]
            # Where fewer events than K exist, one stands there again without mass.
            top += [(top[0][0], -math.inf)] * (self.top_k - len(top))
            ids_TK.append([i for i, _ in top])
            logprobs_TK.append([logprob for _, logprob in top])
            # No more than rounding is hidden by the lower bound: `prompt_places` refuses a mass above 1.
            rest = 1.0 - math.fsum(math.exp(logprob) for _, logprob in top)
            tail_T.append(math.log(max(rest, MIN_TAIL)))
        return rollout.with_tokenwise(
            {
                "teacher.logprobs_T": torch.tensor(own),
                "teacher.top.support_ids": torch.tensor(ids_TK, dtype=torch.int32).reshape(-1, self.top_k),
                "teacher.top.logprobs": torch.tensor(logprobs_TK).reshape(-1, self.top_k),
                "teacher.top.tail_logprobs": torch.tensor(tail_T),
            }
        )

    def _events(self, logprobs: Mapping[int, float]) -> dict[int, float]:
        """Log-probabilities of tokens with all listed ways of stopping made one event, and padding left out."""
        padding, size = self.vocabulary.padding_ids, self.vocabulary.size
        events = {i: value for i, value in logprobs.items() if i < size and i not in padding}
        stops = [events.pop(i) for i in self.vocabulary.stop_ids if i in events]
        if stops:
            assert self.vocabulary.stop_id is not None
            events[self.vocabulary.stop_id] = _log_sum_exp(stops)
        return events


def _log_sum_exp(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).logsumexp(0))
