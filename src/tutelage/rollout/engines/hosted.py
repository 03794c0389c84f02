"""The student's own answers, drawn by another program and read by us.

A sampler such as vLLM draws faster than we do and says how probable each token was to it; that is the behaviour's
log-probability. All else that a rollout carries comes from one forward of our own over the finished answers. So no
other record depends on what the sampler reports, and every token of every step is a self-test: the two
log-probabilities differ by rounding, or the run ends before anything is learned from them.

The tokens are the sampler's own: the same seed gives the same distribution as the paired engine and other tokens.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tutelage.errors import ServerError
from tutelage.kernels import Rows
from tutelage.models import ModelSet, save_for_serving
from tutelage.policies import Policy, Student, Temperature
from tutelage.rollout.decoding.statistics import student_statistics
from tutelage.rollout.decoding.streams import derive_seed
from tutelage.rollout.engines.base import check_served
from tutelage.rollout.limits import DEFAULT_SUPPORT_SIZE, Limits, check_prompts
from tutelage.rollout.reading import Reader
from tutelage.rollout.request import Request
from tutelage.rollout.samplers import HostedSettings, SampledAnswer, Sampler, SamplingParams
from tutelage.schedules import plain_number
from tutelage.types import Prompt, Rollout

__all__ = ["HostedEngine"]

TRIAL_PROMPTS, TRIAL_TOKENS = 4, 16


class HostedEngine:
    """Draws answers of the student alone, at any temperature, through a sampler that holds a copy of its weights.

    It owns what changes from call to call: which step's weights the sampler has, and whether it was tried.

    Args:
      models: the student is the model that is trained; teachers only bound what prompts may be.
      sampler: what draws.
      settings: of the self-test, and the folder of the weights.
      support_size, limits: as in `PairedEngine`.
      from_first: what the first process finds, in all of them. Of several processes with one server, the first gives
        it the weights.
    """

    def __init__(
        self,
        models: ModelSet,
        sampler: Sampler,
        settings: HostedSettings,
        *,
        support_size: int = DEFAULT_SUPPORT_SIZE,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        from_first: Callable[[Callable[[], None]], None] = lambda find: find(),
    ) -> None:
        self.models = models
        self.sampler = sampler
        self.settings = settings
        self.support_size = support_size
        self.limits = limits
        self._from_first = from_first
        self._step: int | None = None
        self._is_tried = False
        self._temporary: Path | None = None

    def refusal(self, policy: Policy) -> str | None:
        if isinstance(policy, Student | Temperature):
            return None
        return (
            f"a sampler such as vLLM draws from the student alone, and the policy {policy} asks for more. Use the "
            "paired engine (rollout.engine = 'paired'), or the policy student or temperature."
        )

    @torch.no_grad()
    def sync(self, policy: Policy, step: int) -> None:
        """Give the sampler the student's weights, unless it has those of this step.

        Raises:
          ServerError: it cannot take them.
        """
        if step != self._step:
            self._from_first(self._load_weights)
            self._step = step

    @torch.no_grad()
    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        """See `Engine.answer`; `sync` comes first.

        Raises:
          ServerError: the sampler ended, or its log-probabilities are not ours within the tolerance.
        """
        check_served(self, policy)
        check_prompts(self.models, request, with_teacher=request.records_statistics)
        if not request.prompts:
            return []
        assert self._step is not None, "the sampler has no weights; call sync first"
        if not self._is_tried:  # a mistake shows in a few tokens, before minutes of answers
            few = Request(
                request.prompts[:TRIAL_PROMPTS],
                min(TRIAL_TOKENS, request.max_new_tokens),
                seed=derive_seed(request.seed, "trial"),
                step=request.step,
                records_statistics=False,
            )
            self._draw(policy, few)
            self._is_tried = True
        return self._draw(policy, request)

    def _load_weights(self) -> None:
        save_for_serving(self.models.student, self._folder())
        self.sampler.load(self._folder())

    def _folder(self) -> Path:
        if self.settings.weights_folder is not None:
            return Path(self.settings.weights_folder).absolute()
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="tutelage-weights-"))
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        return self._temporary

    def _draw(self, policy: Policy, request: Request) -> list[Rollout]:
        """Answers as the sampler draws them, read by us, and refused where the two differ."""
        temperature = plain_number(policy.temperature, "policy.temperature") if isinstance(policy, Temperature) else 1.0
        vocabulary = self.models.vocabulary
        padding = set(vocabulary.padding_ids)
        padding |= set(range(vocabulary.size, self.models.student.padded_vocabulary_size))
        params = SamplingParams(temperature, request.max_new_tokens, vocabulary.stop_ids, tuple(sorted(padding)))
        asked = [
            (i, prompt, sample) for i, prompt in enumerate(request.prompts) for sample in range(request.num_samples)
        ]
        seeds = [
            derive_seed(request.seed, f"vllm/{request.step}/{prompt.stream_at(i)}/{sample}") >> 1
            for i, prompt, sample in asked  # 63 bits: a seed there is a signed number
        ]
        drawn = self.sampler.sample([prompt.student_tokens for _, prompt, _ in asked], seeds, params)
        rollouts = [
            replace(self._rollout(answer, prompt, is_greedy=temperature == 0), prompt_index=i, sample_index=sample)
            for answer, (i, prompt, sample) in zip(drawn, asked, strict=True)
        ]
        read = self._read(policy, rollouts, self.support_size if request.records_statistics else 0)
        if temperature > 0:  # greedy tokens are certain, and may differ where two are equally probable
            self._check_agreement(read)
        return read

    def _read(self, policy: Policy, rollouts: list[Rollout], support_size: int) -> list[Rollout]:
        """The rollouts with what the student here thinks of them; a support of 0 = log-probabilities only."""

        def statistics(student: Rows, tokens_N: Tensor, _: Tensor) -> dict[str, Tensor]:
            behaviour = policy(student.logprobs_NV, None)
            found = {"rescored_logprobs": behaviour.logprobs_of(tokens_N), **behaviour.diagnostics}
            if support_size:
                return found | student_statistics(student, tokens_N, support_size)
            return found | {"student.logprobs_T": student.logprobs_of(tokens_N)}

        reader = Reader(self.models.student, self.models.vocabulary, self.limits.score_tokens)
        prompts = [rollout.prompt_tokens for rollout in rollouts]
        return reader.read(rollouts, prompts, statistics, needs_support=False)

    def _rollout(self, answer: SampledAnswer, prompt: Prompt, *, is_greedy: bool) -> Rollout:
        """An answer of the sampler in our words: whichever stop id ended it, it is the one stop event."""
        vocabulary = self.models.vocabulary
        tokens, logprobs = list(answer.tokens), list(answer.logprobs)
        unknown = [i for i in tokens if i >= vocabulary.size or i in vocabulary.padding_ids]
        if unknown:
            raise ServerError(
                f"the sampler drew the id {unknown[0]}, which is no token of the student's vocabulary: it serves "
                "another model. Start it with the student."
            )
        finished = tokens[-1] in vocabulary.stop_ids
        if finished:
            assert vocabulary.stop_id is not None
            stops = [answer.last_logprobs.get(i, -math.inf) for i in vocabulary.stop_ids if i != tokens[-1]]
            logprobs[-1] = float(torch.tensor([logprobs[-1], *stops], dtype=torch.float64).logsumexp(0))
            tokens[-1] = vocabulary.stop_id
        behaviour_T = torch.tensor([0.0] * len(tokens) if is_greedy else logprobs)
        # What the student says of the tokens comes when we have read them.
        return Rollout.answer_to(prompt, tokens, behaviour_T, finished=finished)

    def _check_agreement(self, rollouts: Sequence[Rollout]) -> None:
        gaps_N = torch.cat([_gaps(rollout) for rollout in rollouts])
        mean, largest = float(gaps_N.mean()), float(gaps_N.max())
        if not (mean <= self.settings.tolerance and largest <= self.settings.tolerance_max):
            raise ServerError(
                f"the sampler's log-probabilities of {len(gaps_N)} sampled tokens differ from ours by {mean:.3g} nats "
                f"on average and {largest:.3g} at most; vllm.tolerance allows {self.settings.tolerance:g} and "
                f"vllm.tolerance_max {self.settings.tolerance_max:g}. It computes another model, or in another way: "
                "check what the server serves and that it runs with --logprobs-mode processed_logprobs, set vllm.dtype "
                "= 'float32', or raise the tolerance."
            )


def _gaps(rollout: Rollout) -> Tensor:
    assert rollout.rescored_logprobs is not None
    return (rollout.behaviour_logprobs.double() - rollout.rescored_logprobs.double()).abs()
