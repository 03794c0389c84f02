"""A teacher that is a server: it reads finished answers and says which tokens it would have found most probable.

A server tells log-probabilities of a few tokens per place, not of all. What it tells is enough for a divergence on the
teacher's own top K with the rest of its mass as one more event, and for losses on sampled tokens. No teacher is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tutelage.errors import ServerError
from tutelage.models import Vocabulary
from tutelage.rollout.server import Server
from tutelage.rollout.vllm_samplers import served_model
from tutelage.types import Rollout

__all__ = ["ServedTeacher"]

# A tail is 1 minus float32 probabilities; less than this is lost in the difference.
SMALLEST_TAIL = 2.0**-24


@dataclass(frozen=True)
class ServedTeacher:
    """Scores rollouts through /v1/completions with `prompt_logprobs`.

    Stop ids that a server lists are one event at the student's id, as everywhere; one that it does not list is less
    probable than all that it lists, and stays in the tail.

    Fields:
      server: of the teacher.
      vocabulary: shared with the student.
      top_k: K, tokens per place whose log-probabilities are kept.
    """

    server: Server
    vocabulary: Vocabulary
    top_k: int

    def refuse_too_long(self, num_tokens: int) -> None:
        """Refuse a server whose context is shorter than the longest prompt with its answer.

        Raises:
          ServerError: or if it does not answer at all.
        """
        limit = served_model(self.server).get("max_model_len")
        if limit is not None and num_tokens + 1 > limit:
            raise ServerError(
                f"a prompt and its answer may have {num_tokens} tokens, and {self.server.url} reads {limit} less the "
                f"one that it must write. Start it with --max-model-len {num_tokens + 1}, or lower "
                "rollout.max_new_tokens."
            )

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Copies of the rollouts with `teacher_logprobs` and the three `teacher_top` fields, in the same order.

        Raises:
          ServerError: no answer within the bounds, or one that lacks something.
        """
        name = served_model(self.server)["id"]
        # Merging stop ids takes places away, so as many more are asked for.
        num_asked = self.top_k + max(len(self.vocabulary.stop_ids) - 1, 0)
        bodies = [
            {
                "model": name,
                "prompt": [*rollout.tokens_for_teacher, *rollout.response_tokens],
                "prompt_logprobs": num_asked,
                "max_tokens": 1,
                "temperature": 0.0,
                "add_special_tokens": False,
            }
            for rollout in rollouts
        ]
        answers = self.server.post_all("/v1/completions", bodies)
        return [self._scored(rollout, answer) for rollout, answer in zip(rollouts, answers, strict=True)]

    def _scored(self, rollout: Rollout, answer: Mapping[str, Any]) -> Rollout:
        places = answer["choices"][0].get("prompt_logprobs")
        first = len(rollout.tokens_for_teacher)
        if places is None or len(places) != first + len(rollout):
            raise ServerError(
                f"{self.server.url} told log-probabilities of {len(places or [])} tokens of a prompt of "
                f"{first + len(rollout)}. A teacher must be a vLLM server, which answers prompt_logprobs."
            )
        own, ids_TK, logprobs_TK, tail_T = [], [], [], []
        for place, token in zip(places[first:], rollout.response_tokens, strict=True):
            known = self._events({int(i): float(entry["logprob"]) for i, entry in place.items()})
            own.append(known[token])
            top = sorted(known.items(), key=lambda item: (-item[1], item[0]))[: self.top_k]
            # Where fewer events than K exist, one stands there again without mass.
            top += [(top[0][0], -math.inf)] * (self.top_k - len(top))
            ids_TK.append([i for i, _ in top])
            logprobs_TK.append([logprob for _, logprob in top])
            rest = 1.0 - math.fsum(math.exp(logprob) for _, logprob in top)
            tail_T.append(math.log(max(rest, SMALLEST_TAIL)))
        return replace(
            rollout,
            teacher_logprobs=torch.tensor(own),
            teacher_top_ids=torch.tensor(ids_TK, dtype=torch.int32).reshape(-1, self.top_k),
            teacher_top_logprobs=torch.tensor(logprobs_TK).reshape(-1, self.top_k),
            teacher_top_tail=torch.tensor(tail_T),
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
