"""From a batch to gradients: the sum of a recipe's terms.

    L = Σ_tokens w_t v_t / Σ_tokens w_t + Σ_pairs u / number of pairs

v_t is the sum of the distribution, token and layer losses at a response token, u that of the pair losses on a pair,
each times its coefficient. The denominators are fixed before the first micro-batch is seen, so loss and gradient
do not depend on how the batch is cut up, nor on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import EmptyBatchError
from tutelage.losses import DistributionLoss, LayerLoss, Loss, PairFacts, PairLoss, TokenLoss
from tutelage.models import ModelSet, compared_outputs
from tutelage.rollout.decoding.streams import derive_seed, uniforms
from tutelage.rollout.reading import batches_by_tokens, response_hidden, tokens_per_chunk
from tutelage.runtime import Learner
from tutelage.training.forms import (
    DEFAULT_LOSS_FORM,
    MicroBatch,
    TokenTerms,
    chosen_form,
    chunked,
    sampled_logprobs,
    tiled,
)
from tutelage.training.group_metrics import advantages_by_difficulty
from tutelage.training.recipe import Recipe
from tutelage.training.target_models import TargetModels
from tutelage.training.token_statistics import TokenStatistics, combined
from tutelage.types import Batch, Fact, Rollout

__all__ = ["MICRO_BATCH_TOKENS", "BatchLoss", "Objective"]

MICRO_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class BatchLoss:
    """What one backward pass over a batch of rollouts found.

    Fields:
      loss: of the global batch; in nats where the terms are.
      num_tokens: response tokens of the global batch, which is also the denominator of a uniform mean.
      logprob_mismatch: mean |log p at the update - log p at the rollout| of the sampled tokens; rounding only, as long
        as rollout and update see the same weights and the same distribution.
      weight_mean: mean weight of the response tokens; 1 if they all count the same.
      statistics: what the token losses report of the global batch, see `TokenLoss.statistics`.
    """

    loss: float
    num_tokens: int
    logprob_mismatch: float
    weight_mean: float = 1.0
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """What is minimised, for one set of models.

    Fields:
      models: the student learns; teachers and reference are asked only where records do not suffice.
      recipe: with numbers in place of schedules. Its policy is not used.
      micro_batch_tokens: most tokens in one forward and backward; answers that are compared stay together.
      chunk_tokens: response tokens that go through the head at once; None = as many as make 256 MiB of logits. A number
        turns form = "auto" into "chunked".
      form: how it is computed, see `training.forms`.
      seed, step: key the random numbers of tokens, for members that draw.
    """

    models: ModelSet
    recipe: Recipe
    micro_batch_tokens: int = MICRO_BATCH_TOKENS
    chunk_tokens: int | None = None
    form: str = DEFAULT_LOSS_FORM
    seed: int = 0
    step: int = 0

    def backward(
        self,
        batch: Batch,
        all_sum: Callable[[float], float] = lambda value: value,
        run: Callable[[Sequence[Callable[[], Tensor]]], None] | None = None,
        gather: Callable[[list[Any]], list[Any]] = lambda items: items,
    ) -> BatchLoss:
        """Add the gradient of the batch's loss to the student's parameters.

        The weights are 1 unless the weighting says otherwise: a mean over all response tokens of the global batch. The
        stop token counts like any other, and no token follows it. Weights and advantages are decided over the whole
        batch, whichever process adds a rollout's gradient.

        Args:
          batch: the global one; `batch.own` is this process's part of it.
          all_sum: sums a number over the processes that share the batch.
          run: adds the gradients of losses, each the forward of one micro-batch; None = as a student here, whole.
          gather: lists of all processes, joined.
        Raises:
          EmptyBatchError: there is no response token.
        """
        num_tokens = batch.num_tokens
        if num_tokens == 0:
            raise EmptyBatchError(
                "the batch has no response token, so a mean loss does not exist. Check max_new_tokens and the prompts."
            )
        total, mismatch, statistics = 0.0, 0.0, TokenStatistics()
        of_batch = self._plan(batch)
        plan = {name: torch.split(values_N, batch.lengths) for name, values_N in of_batch.items()}
        total_weight = sum(float(weights.double().sum()) for weights in plan["weights"])
        denominator = total_weight or 1.0  # where every weight is 0 there is nothing to learn, and no mean

        def loss_of(places: Sequence[int]) -> Tensor:
            nonlocal total, mismatch
            rollouts = [batch.rollouts[i] for i in places]
            planned = {name: torch.cat([parts[i] for i in places]) for name, parts in plan.items()}
            # Layers are read on the teacher's hidden states: where nothing else is learned from, no graph is needed.
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._only_layers):
                values_N, logprobs_N = self._per_token(rollouts, planned, statistics)
            if self._layer_losses:
                values_N = values_N + self._on_layers(rollouts).to(values_N)
            weights_N = planned["weights"].to(values_N)
            # A value with weight 0 must not count when it is infinite, either.
            loss = (weights_N * values_N.masked_fill(weights_N == 0, 0)).sum() / denominator
            if self._pair_losses:
                loss = loss + self._on_pairs(batch, places, logprobs_N) / max(len(batch.pairs), 1)
            total += float(loss.detach())
            sampled_N = torch.cat([rollout.student_logprobs for rollout in rollouts]).to(logprobs_N.device)
            mismatch += float((logprobs_N.detach() - sampled_N).abs().sum()) / num_tokens
            return loss

        run = run or Learner(self.models.student).backward
        run([partial(loss_of, places) for places in self._micro_batches(batch)])
        # Which losses there are is the same for all processes, so all of them gather or none does.
        of_tokens = statistics.result(gather) if self._token_losses else {}
        found = {**of_tokens, **self._batch_statistics(batch, of_batch)}
        return BatchLoss(all_sum(total), num_tokens, all_sum(mismatch), total_weight / num_tokens, found)

    @property
    def _losses(self) -> tuple[Loss, ...]:
        """The terms of this step; 0 times infinity would be none, so a coefficient of 0 leaves a term out."""
        return tuple(loss for loss in self.recipe.losses if loss.factor)

    @property
    def _pair_losses(self) -> list[PairLoss]:
        return [loss for loss in self._losses if isinstance(loss, PairLoss)]

    @property
    def _layer_losses(self) -> list[LayerLoss]:
        return [loss for loss in self._losses if isinstance(loss, LayerLoss)]

    @property
    def _only_layers(self) -> bool:
        return bool(self._losses) and all(isinstance(loss, LayerLoss) for loss in self._losses)

    @property
    def _token_terms(self) -> list[DistributionLoss | TokenLoss]:
        """What gives a number per token."""
        return [loss for loss in self._losses if isinstance(loss, DistributionLoss | TokenLoss)]

    @property
    def _token_losses(self) -> dict[int, TokenLoss]:
        """Those of `_token_terms` that look at sampled tokens, by their places there."""
        return {place: loss for place, loss in enumerate(self._token_terms) if isinstance(loss, TokenLoss)}

    def _plan(self, batch: Batch) -> dict[str, Tensor]:
        """What the whole batch decides for each of its tokens, [N] each: weights, advantages, random numbers."""
        weighting, target, losses = self.recipe.weighting, self.recipe.target, self._token_losses
        drawn_2N = self._uniforms(batch) if weighting.is_random or losses else None
        plan = {"weights": weighting(batch, drawn_2N[0] if drawn_2N is not None and weighting.is_random else None)}
        if not losses:
            return plan
        assert drawn_2N is not None
        student_N = batch.joined("student.logprobs_T")
        target_N = unknown_N = torch.full_like(student_N, torch.nan)
        if any(Fact.teacher_token in loss.needs for loss in losses.values()):
            # Each sampled token as an event of its own: the rule is one that `acts_per_token`.
            target_N = target(student_N[:, None], batch.joined("teacher.logprobs_T")[:, None])[:, 0]
        plan |= {
            "student_logprobs": student_N,
            "behaviour_logprobs": batch.joined("behaviour_logprobs"),
            "target_logprobs": target_N,
            # 24 bits, which float32 holds below 1: not every device has float64.
            "uniforms": ((drawn_2N[1] * 2**24).floor() / 2**24).float(),
            "is_teachers": torch.cat([_drawn_by_teacher(rollout) for rollout in batch.rollouts]),
        }
        if any(Fact.reference in loss.needs for loss in losses.values()):
            plan["reference_logprobs"] = batch.joined("reference.logprobs_T")
        batch = replace(batch, weights_N=plan["weights"])
        for place, loss in losses.items():
            advantage = loss.advantage
            plan[f"advantages.{place}"] = unknown_N if advantage is None else advantage(batch, target_N)
            if (factors_N := loss.factors(batch, plan["weights"])) is not None:
                plan[f"factors.{place}"] = factors_N.to(student_N.dtype)
        return plan

    def _batch_statistics(self, batch: Batch, plan: Mapping[str, Tensor]) -> dict[str, float]:
        """What the token losses report that the plan of the whole batch decides."""
        found = []
        for place, loss in self._token_losses.items():
            found.append(loss.batch_statistics(batch))
            if loss.advantage is not None and loss.advantage.rewards:
                found.append(advantages_by_difficulty(batch, plan[f"advantages.{place}"]))
        return combined(found)

    def _uniforms(self, batch: Batch) -> Tensor:
        """Two random numbers per token, keyed by where it is and by nothing else, for weighting and losses: [2, N]."""
        samples_B = torch.tensor([rollout.sample_index for rollout in batch.rollouts])
        places_T = torch.arange(max(batch.lengths))
        drawn_2BT = uniforms(derive_seed(self.seed, "objective"), self.step, batch.prompts_B, samples_B, places_T)
        is_token_BT = places_T < torch.tensor(batch.lengths)[:, None]
        return torch.stack([drawn_BT[is_token_BT] for drawn_BT in drawn_2BT])

    def _micro_batches(self, batch: Batch) -> list[list[int]]:
        """Places of the rollouts of each forward; those without tokens have none. What is compared stays together."""
        rollouts = batch.rollouts
        own = {place for place in (range(len(rollouts)) if batch.own is None else batch.own) if len(rollouts[place])}
        units = [mine for unit in batch.units if (mine := [place for place in unit if place in own])]
        # A unit, whose answers have one prompt, is a sequence with all of their tokens.
        answers = [[token for place in unit for token in rollouts[place].response_tokens] for unit in units]
        sequences = [(rollouts[unit[0]].prompt_tokens, answer) for unit, answer in zip(units, answers, strict=True)]
        batches = batches_by_tokens(sequences, self.micro_batch_tokens)
        return [[place for i in each for place in units[i]] for each in batches]

    def _per_token(
        self, rollouts: Sequence[Rollout], planned: Mapping[str, Tensor], statistics: TokenStatistics
    ) -> tuple[Tensor, Tensor]:
        """Values of the distribution and token losses, with a graph to the student's parameters, and log p: [N] each.

        Log p has a graph where whole answers are compared. What token losses report is added to `statistics`.
        """
        student, vocabulary = self.models.student, self.models.vocabulary
        hidden_ND = response_hidden(student, [(r.prompt_tokens, r.response_tokens) for r in rollouts])
        device = hidden_ND.device
        known = {name: values_N.to(device) for name, values_N in planned.items()}
        tokens_N = torch.tensor([token for r in rollouts for token in r.response_tokens], device=device)
        micro_batch = MicroBatch(student, vocabulary, rollouts, hidden_ND, tokens_N, known.pop("weights"))
        chunk_tokens = self.chunk_tokens or tokens_per_chunk(vocabulary)
        lengths = [len(r) for r in rollouts]
        if any(loss.asks_answer_ratio for loss in self._token_losses.values()):
            now_N = sampled_logprobs(micro_batch, chunk_tokens)
            known["answer_log_ratios"] = _means(now_N - known["student_logprobs"], lengths)
        terms = TokenTerms(self._token_terms, self.recipe.target, known)
        target_models = TargetModels(self.models, rollouts, device)
        is_one_chunk = bool(self.chunk_tokens) or len(hidden_ND) <= chunk_tokens
        form = self._form(terms, target_models, is_one_chunk=is_one_chunk)
        if form == "chunked":
            compares_answers = bool(self._pair_losses)
            found = chunked(micro_batch, terms, target_models, chunk_tokens, learns_from_answers=compares_answers)
        else:
            found = tiled(micro_batch, terms, target_models, keeps=form == "tiled")
        if terms.learns_from_tokens:
            now_N = found[1].detach()
            statistics.add(terms.statistics(now_N, _means(now_N - known["student_logprobs"], lengths)))
        return found

    def _form(self, terms: TokenTerms, target_models: TargetModels, *, is_one_chunk: bool) -> str:
        """Which form of the loss these rollouts get: "chunked", "tiled" or "recomputed"."""
        wide = [window for window in terms.windows if window.needs_full_target]
        losses = tuple(loss for loss in self._losses if not isinstance(loss, LayerLoss))
        if not losses or (wide and not target_models.must_ask(wide)):
            return "chunked"
        teachers = {id(model): model for window in wide for model in target_models.teachers(window)}
        recipe, student = replace(self.recipe, losses=losses), self.models.student
        return chosen_form(self.form, recipe, student, list(teachers.values()), is_one_chunk=is_one_chunk)

    def _on_layers(self, rollouts: Sequence[Rollout]) -> Tensor:
        """The sum of the layer losses at the response tokens, [N]: each where the hidden state is that predicts it."""
        found = []
        names = list(dict.fromkeys(rollout.teacher_name for rollout in rollouts))
        for name in names:
            mine = [rollout for rollout in rollouts if rollout.teacher_name == name]
            sequences = [[*rollout.prompt_tokens, *rollout.response_tokens[:-1]] for rollout in mine]
            starts = [len(rollout.prompt_tokens) - 1 for rollout in mine]
            outputs = compared_outputs(self.models.student, self.models.teacher_named(name), sequences, starts)
            values_n = torch.stack([loss.factor * loss.on_layers(*outputs) for loss in self._layer_losses]).sum(0)
            found.append(torch.split(values_n, [len(rollout) for rollout in mine]))
        of_teacher = {name: iter(pieces) for name, pieces in zip(names, found, strict=True)}
        return torch.cat([next(of_teacher[rollout.teacher_name]) for rollout in rollouts])

    def _on_pairs(self, batch: Batch, places: Sequence[int], logprobs_N: Tensor) -> Tensor:
        """The sum of the pair losses over the pairs whose answers are at these places."""
        answers = torch.split(logprobs_N, [len(batch.rollouts[place]) for place in places])
        sums = {place: answer_T.sum() for place, answer_T in zip(places, answers, strict=True)}
        pairs = [pair for pair in batch.pairs if sums.keys() & set(pair)]
        if not pairs:
            return logprobs_N.new_zeros(())
        nothing = logprobs_N.new_zeros(())  # log p of an answer without tokens

        def of_side(side: int, value: Callable[[int], Any]) -> Tensor:
            return torch.stack([torch.as_tensor(value(pair[side])) for pair in pairs]).to(logprobs_N)

        def reference(place: int) -> Tensor:
            known_T = batch.rollouts[place].tokenwise("reference.logprobs_T")
            return nothing * torch.nan if known_T is None else known_T.sum()

        facts = PairFacts(
            preferred_reference_P=of_side(0, reference),
            rejected_reference_P=of_side(1, reference),
            preferred_lengths_P=of_side(0, lambda place: len(batch.rollouts[place])),
            rejected_lengths_P=of_side(1, lambda place: len(batch.rollouts[place])),
        )
        preferred_P, rejected_P = (of_side(side, lambda place: sums.get(place, nothing)) for side in (0, 1))
        values = [loss.factor * loss.on_pairs(preferred_P, rejected_P, facts).sum() for loss in self._pair_losses]
        return torch.stack(values).sum()


def _means(values_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """For each token the mean over its answer, [N]."""
    return torch.cat([values_T.mean().expand(len(values_T)) for values_T in torch.split(values_N, list(lengths))])


def _drawn_by_teacher(rollout: Rollout) -> Tensor:
    """[T] bool, tokens that the teacher alone drew; none of them where the policy has no blend."""
    return torch.zeros(len(rollout), dtype=torch.bool) if rollout.blend is None else rollout.blend == 1
