"""From rollouts to gradients: one weighted mean over all response tokens of the global batch.

The denominator is fixed before the first micro-batch is seen, so the loss and its gradient do not depend on how the
batch is cut up, nor on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tutelage.distributions import gather_logprobs, normalise
from tutelage.divergences import Divergence, chunked_divergence
from tutelage.errors import ConfigurationError, EmptyBatchError
from tutelage.models import LanguageModel, ModelSet
from tutelage.rollout.decoding.streams import derive_seed, uniforms
from tutelage.rollout.reading import batches_by_tokens, response_hidden, tokens_per_chunk
from tutelage.runtime import Learner
from tutelage.targets import TargetRule
from tutelage.training.loss_form import is_sum_over_events, loss_form
from tutelage.training.tiled import TiledLoss
from tutelage.types import Batch, DenseTarget, Rollout, SampledTokens, SparseTarget, Target
from tutelage.weighting import UNIFORM, Weighting

__all__ = ["BatchLoss", "Objective"]

# Where a rollout keeps token ids, a model's log-probabilities of them, and that of all others together.
OF_TEACHER = ("support_ids", "teacher.support_logprobs_TK", "teacher.tail_logprobs_T")
OF_REFERENCE = ("support_ids", "reference.support_logprobs_TK", "reference.tail_logprobs_T")
OF_TOP = ("teacher.top.support_ids", "teacher.top.logprobs", "teacher.top.tail_logprobs")

_Read = tuple[LanguageModel, Tensor, Tensor]  # a model, hidden states of its tokens, and which of all tokens these are


@dataclass(frozen=True)
class BatchLoss:
    """What one backward pass over a batch of rollouts found.

    Fields:
      loss: nats per response token, the weighted mean over the global batch.
      num_tokens: response tokens of the global batch, which is also the denominator of a uniform mean.
      logprob_mismatch: mean |log p at the update - log p at the rollout| of the sampled tokens; rounding only, as long
        as rollout and update see the same weights and the same distribution.
      weight_mean: mean weight of the response tokens; 1 if they all count the same.
    """

    loss: float
    num_tokens: int
    logprob_mismatch: float
    weight_mean: float = 1.0


@dataclass(frozen=True)
class Objective:
    """A target seen through a divergence, for a set of models.

    Fields:
      models: the student learns; teachers and reference are asked only where the divergence needs them on all tokens.
      target: what to imitate, with its schedules resolved.
      divergence: how far, through which support.
      weighting: how much each token counts.
      seed, step: key the random numbers of tokens, for members that draw.
      micro_batch_tokens: most tokens in one forward and backward.
      chunk_tokens: response tokens that go through the head at once; None = as many as make 256 MiB of logits. A number
        turns form = "auto" into "chunked".
      form: how it is computed, see `training.loss_form`.
    """

    models: ModelSet
    target: TargetRule
    divergence: Divergence
    micro_batch_tokens: int = 16_384
    chunk_tokens: int | None = None
    weighting: Weighting = UNIFORM
    seed: int = 0
    step: int = 0
    form: str = "auto"

    def backward(
        self,
        rollouts: Sequence[Rollout],
        all_sum: Callable[[float], float] = lambda value: value,
        *,
        own: Sequence[int] | None = None,
        run: Callable[[Sequence[Callable[[], Tensor]]], None] | None = None,
    ) -> BatchLoss:
        """Add the gradient of the batch's mean loss to the student's parameters.

        L = sum_rollouts sum_t w_t D(p_t, target_t) / sum_rollouts sum_t w_t

        The weights are 1 unless the weighting says otherwise: a mean over all response tokens of the global batch. The
        stop token counts like any other; nothing behind it exists.

        Args:
          rollouts: the global batch.
          all_sum: sums a number over the processes that share the batch.
          own: places of the rollouts whose gradient is this process's to add; None = all. Weights and credits are
            decided over the whole batch all the same.
          run: adds the gradients of losses, each the forward of one micro-batch; None = as a student here, whole.
        Raises:
          EmptyBatchError: there is no response token.
        """
        num_tokens = sum(len(rollout) for rollout in rollouts)
        if num_tokens == 0:
            raise EmptyBatchError(
                "the batch has no response token, so a mean loss does not exist. Check max_new_tokens and the prompts."
            )
        total, mismatch = 0.0, 0.0
        own_places = set(range(len(rollouts)) if own is None else own)
        with_tokens = [rollout for rollout in rollouts if len(rollout)]
        is_own = [place in own_places for place, rollout in enumerate(rollouts) if len(rollout)]
        plan = self._plan(Batch(with_tokens))
        total_weight = sum(float(weights.double().sum()) for weights in plan["weights"])
        plan = {name: [part for part, mine in zip(parts, is_own, strict=True) if mine] for name, parts in plan.items()}
        with_tokens = [rollout for rollout, mine in zip(with_tokens, is_own, strict=True) if mine]
        sequences = [(rollout.prompt_tokens, rollout.response_tokens) for rollout in with_tokens]
        denominator = total_weight or 1.0  # where every weight is 0 there is nothing to learn, and no mean

        def loss_of(batch: list[int]) -> Tensor:
            nonlocal total, mismatch
            planned = {name: torch.cat([parts[i] for i in batch]) for name, parts in plan.items()}
            values = self._per_token([with_tokens[i] for i in batch], planned)
            weights_N = planned["weights"].to(values["divergence"])
            # What does not count must not count when it is infinite either.
            loss = (weights_N * values["divergence"].masked_fill(weights_N == 0, 0)).sum() / denominator
            total += float(loss.detach())
            mismatch += float(values["logprob_mismatch"].sum()) / num_tokens
            return loss

        run = run or Learner(self.models.student).backward
        run([partial(loss_of, batch) for batch in batches_by_tokens(sequences, self.micro_batch_tokens)])
        return BatchLoss(all_sum(total), num_tokens, all_sum(mismatch), total_weight / num_tokens)

    def _plan(self, records: Batch) -> dict[str, list[Tensor]]:
        """What the whole batch decides for each of its tokens, per rollout: weights, credits, random numbers."""
        is_on_sampled = self.divergence.needs_rollouts
        for_weighting_N, for_divergence_N = (
            self._uniforms(records) if self.weighting.is_random or is_on_sampled else (None, None)
        )
        plan = {"weights": self.weighting(records, for_weighting_N)}
        if is_on_sampled:
            student_N = records.joined("student.logprobs_T")
            target_N = records.joined("teacher.logprobs_T")
            if not self.divergence.imitates_tokens:
                # Each sampled token as an event of its own: the rule is one that `acts_per_token`.
                target_N = self.target(student_N[:, None], target_N[:, None])[:, 0]
            assert for_divergence_N is not None
            plan |= {
                "target_logprobs": target_N,
                "credits": self.divergence.credits(records, target_N - student_N),
                # 24 bits, which float32 holds below 1: not every device has float64.
                "uniforms": ((for_divergence_N * 2**24).floor() / 2**24).float(),
                "is_teachers": torch.cat([_drawn_by_teacher(rollout) for rollout in records.rollouts]),
            }
        return {name: list(torch.split(values_N, records.lengths)) for name, values_N in plan.items()}

    def _uniforms(self, records: Batch) -> tuple[Tensor, Tensor]:
        """Two random numbers per token, keyed by where it is and by nothing else, for weighting and divergence."""
        prompts_B = torch.tensor([rollout.prompt_index for rollout in records.rollouts])
        samples_B = torch.tensor([rollout.sample_index for rollout in records.rollouts])
        places_T = torch.arange(max(records.lengths))
        drawn_2BT = uniforms(derive_seed(self.seed, "objective"), self.step, prompts_B, samples_B, places_T)
        is_token_BT = places_T < torch.tensor(records.lengths)[:, None]
        return drawn_2BT[0][is_token_BT], drawn_2BT[1][is_token_BT]

    def _per_token(self, rollouts: Sequence[Rollout], planned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Divergence of every response token, [N], with a graph to the student's parameters."""
        hidden_ND = response_hidden(self.models.student, [(r.prompt_tokens, r.response_tokens) for r in rollouts])
        device = hidden_ND.device
        tokens_N = torch.tensor([token for r in rollouts for token in r.response_tokens], device=device)
        sampled_N = torch.cat([r.student_logprobs for r in rollouts]).to(device)
        planned = {name: values_N.to(device) for name, values_N in planned.items()}
        behaviour_N = torch.cat([r.behaviour_logprobs for r in rollouts]).to(device)

        def compared(student: Tensor, teacher: Tensor, reference: Tensor | None, now_n: Tensor, span: slice) -> Tensor:
            """The loss per token from log-probabilities on the same events, and those of the sampled tokens."""
            # What to imitate is a fixed point of this update: no gradient flows into it, unless the target says so.
            target = self.target(student.detach() if self.target.is_constant else student, teacher, reference)
            if not self.divergence.needs_rollouts:
                return self.divergence.between(student, target)
            of_plan = (planned[name][span] for name in ("target_logprobs", "credits", "uniforms", "is_teachers"))
            sampled = SampledTokens(now_n, sampled_N[span], behaviour_N[span], *of_plan)
            return self.divergence.on_sampled(sampled, student, target)

        chunk = self.chunk_tokens or tokens_per_chunk(self.models.vocabulary)
        form = self._form(rollouts, is_one_chunk=bool(self.chunk_tokens) or len(hidden_ND) <= chunk)
        if form != "chunked":
            weights_N = planned.get("weights", torch.ones(len(hidden_ND), device=device))
            learner = TiledLoss(
                self.models.student, self.models.vocabulary, hidden_ND, tokens_N, weights_N, keeps=form == "tiled"
            )
            if self.divergence.needs_full_target:
                ((teacher, target_hidden_ND, _),) = self._read(*self._readers(rollouts), rollouts, device)
                is_local = is_sum_over_events(self.divergence, self.target)
                share = self.divergence.generalised_jsd_share if self.target.is_teacher else None
                values_N, now_N = learner.against(
                    teacher, target_hidden_ND, compared, is_local=is_local, jsd_share=share
                )
            else:
                values_N, now_N = learner.on_record(
                    self.divergence.window,
                    self._targets(rollouts, device),
                    self._references(rollouts, device),
                    compared,
                )
            return {"divergence": values_N, "logprob_mismatch": (now_N - sampled_N).abs()}

        targets, references = self._targets(rollouts, device), self._references(rollouts, device)

        def per_token(hidden_nD: Tensor, span: slice) -> dict[str, Tensor]:
            logits_nV = self.models.vocabulary.shared_logits(self.models.student.logits(hidden_nD))
            student_logprobs, teacher_logprobs = self.divergence.window.events(logits_nV, targets(span))
            reference_logprobs = None
            if references is not None:
                _, reference_logprobs = self.divergence.window.events(logits_nV.detach(), references(span))
            with torch.set_grad_enabled(self.divergence.needs_rollouts and torch.is_grad_enabled()):
                now_n = gather_logprobs(normalise(logits_nV), tokens_N[span])
            divergence_n = compared(student_logprobs, teacher_logprobs, reference_logprobs, now_n, span)
            return {"divergence": divergence_n, "logprob_mismatch": (now_n.detach() - sampled_N[span]).abs()}

        group = self.divergence.tokens_per_group
        if group is not None:  # what is compared together stays together, and nothing else joins it
            return chunked_divergence(per_token, hidden_ND, group, [len(rollout) for rollout in rollouts])
        return chunked_divergence(per_token, hidden_ND, chunk)

    def _form(self, rollouts: Sequence[Rollout], *, is_one_chunk: bool) -> str:
        """Which form of the loss these rollouts get: "chunked", "tiled" or "recomputed"."""
        if self._reads_tops(rollouts):
            return "chunked"
        teachers = self._readers(rollouts)[0] if self.divergence.needs_full_target else []
        distinct = list({id(teacher): teacher for teacher in teachers}.values())
        return loss_form(
            self.form, self.divergence, self.target, self.models.student, distinct, is_one_chunk=is_one_chunk
        )

    def _reads_tops(self, rollouts: Sequence[Rollout]) -> bool:
        """What the teacher wrote down of its own top tokens is all that is looked at."""
        looks_at_top = self.divergence.support == "teacher_top_k" or self.divergence.imitates_tokens
        return looks_at_top and all(rollout.tokenwise("teacher.top") is not None for rollout in rollouts)

    def _readers(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[list[LanguageModel], list[Sequence[int]], list[Tensor | None]]:
        """Whose whole distribution each rollout is compared with, what that teacher reads, and what it has read."""
        if not self.models.teachers:
            raise ConfigurationError(
                f"divergence.support is {self.divergence.support!r}, which needs the teacher's whole distribution, but "
                "no teacher is loaded. Load one, or use divergence.support = 'student_top_k'."
            )
        readers = [self.models.teacher_named(rollout.teacher_name) for rollout in rollouts]
        return readers, [r.tokens_for_teacher for r in rollouts], [r.tokenwise("teacher.hidden_TD") for r in rollouts]

    def _targets(self, rollouts: Sequence[Rollout], device: torch.device) -> Callable[[slice], Target]:
        """The teacher at a span of the response tokens: as recorded where that suffices, asked otherwise."""
        if self._reads_tops(rollouts):
            # Who imitates tokens looks at no event, so that any record will do.
            return _recorded(rollouts, device, OF_TOP, "student" if self.divergence.imitates_tokens else "teacher")
        if not self.divergence.needs_full_target:
            return _recorded(rollouts, device, OF_TEACHER)
        return self._asked(self._read(*self._readers(rollouts), rollouts, device), device)

    def _references(self, rollouts: Sequence[Rollout], device: torch.device) -> Callable[[slice], Target] | None:
        """The same of the reference, if the target needs one."""
        if self.target.needs is None:
            return None
        if not self.divergence.needs_full_target:
            return _recorded(rollouts, device, OF_REFERENCE)
        reference = self.models.reference
        if reference is None:
            raise ConfigurationError(
                f"{self.target!r} compares with a reference, but none is loaded. Load one, or use another target."
            )
        reads_teachers = self.models.reference_reads == "teacher"
        prompts = [r.tokens_for_teacher if reads_teachers else r.prompt_tokens for r in rollouts]
        nothing = [None] * len(rollouts)
        return self._asked(self._read([reference] * len(rollouts), prompts, nothing, rollouts, device), device)

    def _read(
        self,
        readers: Sequence[LanguageModel],
        prompts: Sequence[Sequence[int]],
        kept: Sequence[Tensor | None],
        rollouts: Sequence[Rollout],
        device: torch.device,
    ) -> list[_Read]:
        """Each model, the hidden states of the tokens that are its own, and which these are.

        `kept`: hidden states that its head turns into distributions, where known, so that it need not read again.
        """
        owners_N = torch.tensor([place for place, r in enumerate(rollouts) for _ in r.response_tokens], device=device)
        read: list[_Read] = []
        for identity in dict.fromkeys(map(id, readers)):
            mine = [place for place, reader in enumerate(readers) if id(reader) == identity]
            reader = readers[mine[0]]
            # Hidden states are kept and not logits: [N, D] instead of [N, V].
            known = [hidden for i in mine if (hidden := kept[i]) is not None]
            if len(known) == len(mine):
                hidden_ND = torch.cat(known).to(reader.device)
            else:
                with torch.no_grad():
                    hidden_ND = response_hidden(reader, [(prompts[i], rollouts[i].response_tokens) for i in mine])
            read.append((reader, hidden_ND, torch.isin(owners_N, torch.tensor(mine, device=device))))
        return read

    def _asked(self, read: Sequence[_Read], device: torch.device) -> Callable[[slice], Target]:
        """Whole distributions at a span of the response tokens, from the model that read each rollout."""

        def asked(span: slice) -> Target:
            with torch.no_grad():
                if len(read) == 1:
                    model, hidden_ND, _ = read[0]
                    return DenseTarget(self.models.vocabulary.shared_logits(model.logits(hidden_ND[span])).to(device))
                pieces = []
                for model, hidden_ND, is_mine_N in read:
                    before = int(is_mine_N[: span.start].sum())
                    own = slice(before, before + int(is_mine_N[span].sum()))
                    pieces.append(self.models.vocabulary.shared_logits(model.logits(hidden_ND[own])).to(device))
                # Laid end to end by model; back to the order of the tokens.
                order_n = torch.cat([is_mine_N[span].nonzero()[:, 0] for _, _, is_mine_N in read]).argsort()
                return DenseTarget(torch.cat(pieces)[order_n])

        return asked


def _drawn_by_teacher(rollout: Rollout) -> Tensor:
    """[T] bool, tokens that the teacher alone drew; none of them where the policy has no blend."""
    return torch.zeros(len(rollout), dtype=torch.bool) if rollout.blend is None else rollout.blend == 1


def _recorded(
    rollouts: Sequence[Rollout], device: torch.device, names: Sequence[str], whose: str = "student"
) -> Callable[[slice], Target]:
    """What a model wrote down while it read; `whose` top tokens these are is for `SparseTarget`."""
    records = Batch(rollouts)
    ids_NK, logprobs_NK, tail_N = (records.joined(name).to(device) for name in names)
    return lambda span: SparseTarget(ids_NK[span], logprobs_NK[span], tail_N[span], whose)
