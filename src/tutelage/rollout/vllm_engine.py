"""The student's own answers, drawn by vLLM and read by us.

vLLM draws faster than we do and says how probable each token was to it; that is the behaviour's log-probability. All
else that a rollout carries comes from one forward of our own over the finished answers. So no other record depends on
what vLLM reports, and every token of every step is a self-test: the two log-probabilities differ by rounding, or the
run ends before anything is learned from them.

The tokens are vLLM's own: the same seed gives the same distribution as the paired engine and other tokens.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import LanguageModel, Vocabulary, save_for_serving
from tutelage.policies import Policy, Student, Temperature
from tutelage.rollout.scoring import score_student
from tutelage.rollout.streams import derive_seed
from tutelage.rollout.vllm_samplers import SampledAnswer, Sampler, SamplingParams
from tutelage.schedules import plain_number
from tutelage.types import Prompt, Reading, Rollout

__all__ = ["VLLMEngine", "VLLMSettings"]

TRIAL_PROMPTS, TRIAL_TOKENS = 4, 16


@dataclass(frozen=True)
class VLLMSettings:
    """[vllm]: where vLLM runs, and how far it may differ from us.

    Fields:
      server: address of a vLLM server that holds the student; None = vLLM is started beside this process.
      dtype: that vLLM computes in, when it is started here.
      memory_share: of the device's memory that vLLM takes then.
      options: further arguments of `vllm.LLM` then.
      weights_folder: where each step's weights are handed over; a server must see it under the same path. None = a
        temporary folder.
      tolerance, tolerance_max: nats that log-probabilities of vLLM and ours may differ, in the mean and at one token.
      timeout_seconds, retries: of requests to the server.
    """

    server: str | None = None
    dtype: str = "bfloat16"
    memory_share: float = 0.3
    options: dict[str, Any] | None = None
    weights_folder: str | None = None
    tolerance: float = 0.1
    tolerance_max: float = 2.0
    timeout_seconds: float = 600.0
    retries: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.memory_share < 1:
            raise ConfigurationError(
                f"vllm.memory_share is {self.memory_share:g}; expected a share between 0 and 1. Use 0.3."
            )
        if self.tolerance <= 0 or self.tolerance_max <= 0:
            raise ConfigurationError(
                f"vllm.tolerance is {self.tolerance:g} and vllm.tolerance_max {self.tolerance_max:g}; expected nats "
                "above 0. Leave them out for the defaults."
            )


class VLLMEngine:
    """Draws answers of the student, at any temperature, with the student's weights as they are at the call.

    Args:
      student: the model that is trained; its weights are handed over whenever they have changed.
      vocabulary: shared with the teacher.
      sampler: where vLLM runs.
      support_size, score_tokens: as in `PairedEngine`.
      settings: of the self-test, and the folder of the weights.
      syncs_weights: give vLLM new weights as soon as they are needed. Of several processes with one server, one does,
        by `sync_weights`, before any of them generates.
    """

    def __init__(
        self,
        student: LanguageModel,
        vocabulary: Vocabulary,
        sampler: Sampler,
        *,
        settings: VLLMSettings,
        support_size: int = 16,
        score_tokens: int = 16_384,
        syncs_weights: bool = True,
    ) -> None:
        self.student = student
        self.vocabulary = vocabulary
        self.sampler = sampler
        self.settings = settings
        self.support_size = support_size
        self.score_tokens = score_tokens
        self.syncs_weights = syncs_weights
        self._loaded: list[float] | None = None
        self._is_tried = False
        self._temporary: Path | None = None

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        num_samples: int,
        seed: int,
        step: int,
        records_statistics: bool = True,
    ) -> list[Rollout]:
        """As `PairedEngine.generate`, for policies that are the student alone.

        Raises:
          ConfigurationError: another policy.
          ServerError: vLLM ended, or its log-probabilities are not ours within the tolerance.
        """
        if not isinstance(policy, Student | Temperature):
            raise ConfigurationError(
                f"vLLM draws from the student alone, and the policy {policy} asks for more. Use the paired engine "
                "(rollout.engine = 'paired'), or the policy student or temperature."
            )
        if self.syncs_weights:
            self.sync_weights()
        if not self._is_tried:  # a mistake shows in a few tokens, before minutes of answers
            few, short = prompts[:TRIAL_PROMPTS], min(TRIAL_TOKENS, max_new_tokens)
            self._checked(policy, few, short, 1, derive_seed(seed, "trial"), step, 0)
            self._is_tried = True
        support_size = self.support_size if records_statistics else 0
        return self._checked(policy, prompts, max_new_tokens, num_samples, seed, step, support_size)

    @torch.no_grad()
    def sync_weights(self) -> None:
        """Give vLLM the student's weights, if they are not those that it has."""
        # One sum per tensor: an update that leaves all of them as they were does not happen.
        present = [float(weights.sum(dtype=torch.float64)) for weights in self.student.module.parameters()]
        if present == self._loaded:
            return
        save_for_serving(self.student, self._folder())
        self.sampler.load(self._folder())
        self._loaded = present

    def _folder(self) -> Path:
        if self.settings.weights_folder is not None:
            return Path(self.settings.weights_folder).absolute()
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="tutelage-weights-"))
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        return self._temporary

    def _checked(
        self,
        policy: Student | Temperature,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        num_samples: int,
        seed: int,
        step: int,
        support_size: int,
    ) -> list[Rollout]:
        """Answers as vLLM draws them, read by us, and refused where the two differ."""
        temperature = 1.0
        if isinstance(policy, Temperature):
            temperature = plain_number(policy.temperature, "policy.temperature")
        padding = set(self.vocabulary.padding_ids)
        padding |= set(range(self.vocabulary.size, self.student.padded_vocabulary_size))
        params = SamplingParams(temperature, max_new_tokens, self.vocabulary.stop_ids, tuple(sorted(padding)))
        asked = [(i, prompt, sample) for i, prompt in enumerate(prompts) for sample in range(num_samples)]
        seeds = [
            derive_seed(seed, f"vllm/{step}/{i if prompt.stream is None else prompt.stream}/{sample}") >> 1
            for i, prompt, sample in asked  # 63 bits: a seed there is a signed number
        ]
        drawn = self.sampler.sample([prompt.student_tokens for _, prompt, _ in asked], seeds, params)
        rollouts = [
            self._rollout(answer, prompt, place, sample, is_greedy=temperature == 0)
            for answer, (place, prompt, sample) in zip(drawn, asked, strict=True)
        ]
        read = score_student(
            self.student, self.vocabulary, rollouts, policy, support_size=support_size, max_tokens=self.score_tokens
        )
        if temperature > 0:  # greedy tokens are certain, and may differ where two are equally probable
            self._check_agreement(read)
        return read

    def _rollout(self, answer: SampledAnswer, prompt: Prompt, place: int, sample: int, *, is_greedy: bool) -> Rollout:
        """An answer of vLLM in our words: whichever stop id ended it, it is the one stop event."""
        tokens, logprobs = list(answer.tokens), list(answer.logprobs)
        unknown = [i for i in tokens if i >= self.vocabulary.size or i in self.vocabulary.padding_ids]
        if unknown:
            raise ServerError(
                f"vLLM drew the id {unknown[0]}, which is no token of the student's vocabulary: it serves another "
                "model. Start it with the student."
            )
        finished = tokens[-1] in self.vocabulary.stop_ids
        if finished:
            assert self.vocabulary.stop_id is not None
            stops = [answer.last_logprobs.get(i, -math.inf) for i in self.vocabulary.stop_ids if i != tokens[-1]]
            logprobs[-1] = float(torch.tensor([logprobs[-1], *stops], dtype=torch.float64).logsumexp(0))
            tokens[-1] = self.vocabulary.stop_id
        behaviour_T = torch.tensor([0.0] * len(tokens) if is_greedy else logprobs)
        return Rollout(
            prompt_tokens=list(prompt.student_tokens),
            response_tokens=tokens,
            behaviour_logprobs=behaviour_T,
            student=Reading(behaviour_T),  # until we have read it
            finished=finished,
            prompt_index=place,
            sample_index=sample,
            teacher_prompt_tokens=None if prompt.teacher_tokens is None else list(prompt.teacher_tokens),
            teacher_name=prompt.teacher_name,
        )

    def _check_agreement(self, rollouts: Sequence[Rollout]) -> None:
        gaps_N = torch.cat([_gaps(rollout) for rollout in rollouts])
        mean, largest = float(gaps_N.mean()), float(gaps_N.max())
        if not (mean <= self.settings.tolerance and largest <= self.settings.tolerance_max):
            raise ServerError(
                f"vLLM's log-probabilities of {len(gaps_N)} sampled tokens differ from ours by {mean:.3g} nats in the "
                f"mean and {largest:.3g} at most; vllm.tolerance allows {self.settings.tolerance:g} and "
                f"vllm.tolerance_max {self.settings.tolerance_max:g}. It computes another model, or in another way: "
                "check what the server serves and that it runs with --logprobs-mode processed_logprobs, set vllm.dtype "
                "= 'float32', or raise the tolerance."
            )


def _gaps(rollout: Rollout) -> torch.Tensor:
    assert rollout.rescored_logprobs is not None
    return (rollout.behaviour_logprobs.double() - rollout.rescored_logprobs.double()).abs()
