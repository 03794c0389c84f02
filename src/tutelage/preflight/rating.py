"""What are answers worth, as the run's rewards see them, and can anything be learned from the differences?"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tutelage.config import RunAssembly
from tutelage.preflight.finding import Finding, Verdict
from tutelage.preflight.trial import seed_of
from tutelage.training import Phase, PromptOrder, Stopwatch, collect, zero_spread_share
from tutelage.types import Batch

__all__ = ["rewards", "spread"]

NUM_PROMPTS = 16
HARDLY = 0.9  # share of prompts without spread above which little is learned
PROBE = "This is the answer."  # to the first problem, for reward models
SHOWN_CHARACTERS = 400


def rewards(run: RunAssembly) -> Finding:
    """The rewards and what they read; a reward model's tokenizer, template and files fit together."""
    plan, problem = run.rating_plan, run.prompts.problems[0]
    assert plan is not None  # else the check is not made
    _ = run.rating_inputs
    named = ", ".join(f"{reward.label} (weight {reward.weight})" for reward in plan.rewards)
    previews = {reward.label: reward.preview(plan.setting, problem, PROBE) for reward in plan.rewards}
    read = {label: text for label, text in previews.items() if text is not None}
    details = tuple(f"{label} reads: {_shortened(text)!r}" for label, text in read.items())
    silent = [label for label, text in read.items() if PROBE not in text]
    if silent:
        return Finding(
            Verdict.error,
            f"{named}; the chat template of {', '.join(silent)} leaves the answer out, and no answer counts",
            "Give the reward model the template that it was trained with.",
            details,
        )
    fits = f"; tokenizer, template and weights of {', '.join(read)} fit together" if read else ""
    return Finding(Verdict.ok, f"{named}{fits}", details=details)


def spread(run: RunAssembly) -> Finding:
    """Mean and spread of the rewards of a few prompts' answers; without differences there is nothing to learn."""
    phase = _rewarded(run)
    learns = any(advantage.rewards for advantage in phase.recipe.advantages)
    num_prompts = min(NUM_PROMPTS, len(run.prompts.prompts))
    source = replace(
        run.source,
        order=PromptOrder(len(run.prompts.prompts), num_prompts, True, seed_of(run)),
        rollout=replace(run.source.rollout, prompts_per_step=num_prompts, redraws=0),
        seed=seed_of(run),
    )
    batch = collect(source, phase.first_step, phase.recipe_at(phase.first_step), Stopwatch())
    combined_B, num_samples = batch.rewards["reward"], source.rollout.samples_per_prompt
    share = zero_spread_share(batch, combined_B)
    text = f"{num_prompts} prompts, {num_samples} answer{'s' * (num_samples > 1)} each: reward {_shown(combined_B)}"
    details = tuple(f"{label}: {_shown(batch.rewards[label])}" for label in batch.rewards if label != "reward")
    if share is None:
        is_flat = float(combined_B.max()) == float(combined_B.min())
        share = float(is_flat)
        text += "; all are worth the same" if is_flat else ""
    else:
        text += f"; of {round(share * num_prompts)} prompts all answers are worth the same"
    if not learns:
        return Finding(
            Verdict.ok, f"{text}. No loss learns from rewards, so they are written down only", details=details
        )
    if share > HARDLY:
        what = "nothing can be learned from these" if share == 1 else "little can be learned from these"
        return Finding(Verdict.warning, f"{text}: {what}", _remedy(batch), details)
    return Finding(Verdict.ok, text, details=details)


def _rewarded(run: RunAssembly) -> Phase:
    """The first phase that learns from rewards, or else the first one."""
    learning = [phase for phase in run.phases if any(advantage.rewards for advantage in phase.recipe.advantages)]
    return (learning or run.phases)[0]


def _remedy(batch: Batch) -> str:
    """What to do about answers that are all worth the same."""
    more = "raise rollout.samples_per_prompt, or set rollout.redraws to replace prompts without spread"
    if "correct" not in batch.rewards:
        return f"Use a reward that tells the answers apart, {more}."
    share = float(batch.rewards["correct"].mean())
    if share > 0.5:
        return f"Use harder prompts, {more}."
    return (
        f"Use easier prompts, begin with distillation or fine-tuning ([[phase]], docs/concepts/warm-ups.md), {more}. "
        "Check the verifier line above, too."
    )


def _shown(values_B: Tensor) -> str:
    return f"mean {float(values_B.double().mean()):.3g}, deviation {float(values_B.double().std(correction=0)):.3g}"


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} [...] {text[-half:]}"
