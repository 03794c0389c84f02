"""What are answers worth in this run?  From the tables `[[reward]]` and `[reward_combination]` to their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.config.parts import named_in_refusals, part_from
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.rewards import COMBINATIONS, COMBINED, REWARDS, Combination, Rating, Reward, Setting, check_rewards
from tutelage.tasks import Problem, TemplateClock
from tutelage.training import UPDATES, Phase
from tutelage.types import Rollout

__all__ = ["RatingPlan", "check_reward_gradients", "check_reward_names", "rating_plan"]

COMBINATION_KEY = "reward_combination"


@dataclass(frozen=True)
class RatingPlan:
    """How answers are rated, before anything is opened.

    Fields:
      rewards: with their labels.
      combination: makes one number of them.
      setting: what the run tells them.
    """

    rewards: Sequence[Reward]
    combination: Combination
    setting: Setting

    @property
    def reads_answers(self) -> bool:
        """Whether a reward reads the right answer, where it is known."""
        return any(reward.reads_answer for reward in self.rewards)

    def inputs(self) -> dict[str, Any]:
        """Digests of what the rewards read, by their labels.

        Raises:
          ConfigurationError, ModelError: a reward cannot work; its table is named.
        """
        found = {}
        for place, reward in enumerate(self.rewards):
            with named_in_refusals(f"reward[{place}]", "reward"):
                found[reward.label] = reward.check(self.setting)
        return {label: digests for label, digests in found.items() if digests}

    def opened(self, problems: Sequence[Problem], response_of: Callable[[Rollout], str]) -> Rating:
        """The judges, ready; weights of reward models are loaded here."""
        return Rating(self.rewards, self.combination, self.setting, problems=problems, response_of=response_of)


def rating_plan(config: RunConfig, device: str, clock: TemplateClock) -> RatingPlan | None:
    """The rewards of a run file; None = there are none.

    Args:
      device: where reward models compute.
      clock: the date for their chat templates.
    Raises:
      ConfigurationError: as of `part_from`, of the rewards themselves, or a combination without rewards.
    """
    if not config.reward:
        if config.reward_combination != RunConfig.model_fields[COMBINATION_KEY].default:
            raise ConfigurationError(
                f"{COMBINATION_KEY} is set, and there is no [[reward]] to combine. Add one, or drop it."
            )
        return None
    rewards = [_reward_from(table, f"reward[{place}]") for place, table in enumerate(config.reward)]
    combination = _combination_from(config.reward_combination)
    check_rewards(rewards, combination)
    if combination.compares_answers and config.rollout.samples_per_prompt < 2:
        raise ConfigurationError(
            f"{COMBINATION_KEY} {type(combination).__name__} normalises rewards among the answers to a prompt, but "
            "rollout.samples_per_prompt is 1, so every reward would be 0. Set it to at least 2."
        )
    for reward in rewards:
        if reward.reads_verdict and not (config.data.verifier and config.data.answer_column):
            key = "data.answer_column" if config.data.verifier else "data.verifier"
            raise ConfigurationError(
                f"the reward {reward.label!r} is the verifier's verdict, but {key} is empty. Set it, or use another "
                "reward."
            )
    return RatingPlan(rewards, combination, Setting(device, config.rollout.max_new_tokens, clock))


def check_reward_names(phases: Sequence[Phase], plan: RatingPlan | None) -> None:
    """Refuse advantages that read a reward which the run does not have.

    Raises:
      ConfigurationError: names it and those that there are.
    """
    known = {"reward", "correct", *(reward.label for reward in ([] if plan is None else plan.rewards))}
    for advantage in (advantage for phase in phases for advantage in phase.recipe.advantages):
        for name in sorted(advantage.rewards - known):
            raise ConfigurationError(
                f"the advantage {advantage} reads the reward {name!r}, and the run has {', '.join(sorted(known))}. Add "
                f"a [[reward]] with the label {name!r}, or name one of these in the advantage's field `reward`."
            )


def check_reward_gradients(phases: Sequence[Phase], plan: RatingPlan | None) -> None:
    """Refuse a combination that follows gradients where there are none, or none of the rewards alone.

    Raises:
      ConfigurationError: with the reason.
    """
    if plan is None or not plan.combination.measures_gradients(0):
        return
    follows = f"{COMBINATION_KEY} {type(plan.combination).__name__} follows the gradient of each reward"
    updates = {phase.optimizer.name for phase in phases}
    for name in sorted(name for name in updates if not UPDATES[name].measures_rewards):
        raise ConfigurationError(
            f"{follows}, and the update {name!r} measures none. Set optimizer.name = 'adamw', or use another "
            "combination."
        )
    advantages = [loss.advantage for phase in phases for loss in phase.recipe.rewarded_by(COMBINED)]
    if not advantages:
        raise ConfigurationError(
            f"{follows}, and no loss has an advantage that reads the combined reward. Add one, such as [[loss]] name = "
            '"policy_gradient", or use another combination.'
        )
    for advantage in advantages:
        if advantage is not None and not advantage.consists_of(COMBINED):
            raise ConfigurationError(
                f"{follows}, and the advantage {advantage} adds up something beside the combined reward, which would "
                "be in all of them. Give that a [[loss]] of its own, or use another combination."
            )


def _reward_from(table: Mapping[str, Any], key: str) -> Reward:
    with named_in_refusals(key, "reward"):
        reward = part_from(table, REWARDS, key)
    return replace(reward, label=reward.label or table["name"])


def _combination_from(table: Mapping[str, Any]) -> Combination:
    # What is given by label is a table as a schedule is, and reaches the part as pairs.
    pairs = {
        name: tuple(value.items()) if isinstance(value, Mapping) and "schedule" not in value else value
        for name, value in table.items()
    }
    return part_from(pairs, COMBINATIONS, COMBINATION_KEY)
