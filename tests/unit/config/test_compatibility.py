"""What parts need against what runs offer: every line of the table, and every combination of the members."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from itertools import product
from typing import Any

import pytest
import torch

from tutelage.advantages import GroupReward
from tutelage.config import RunConfig, build_phases, resolve_config
from tutelage.config.compatibility import CIRCUMSTANCES, USES, check_facts, facts_offered, needs_of
from tutelage.errors import ConfigurationError
from tutelage.losses import LOSSES, Loss, TokenFacts, TokenLoss
from tutelage.losses.distributions import ReverseKL
from tutelage.losses.tokens import PolicyGradient, SampledReverseKL
from tutelage.policies import POLICIES, Offline, Policy, Student, Teacher
from tutelage.targets import TARGETS, TargetRule
from tutelage.training import Recipe
from tutelage.types import Batch, Fact
from tutelage.weighting import WEIGHTINGS, Weighting

TEACHER = TARGETS["teacher"]()
SERVED = {"teacher": {"path": "t", "server": "http://localhost:1"}}
REFRESHED = {"reference": {"refresh_every": 5}}
# A run in which each circumstance holds, and no other but the last two: its tables, its policy, a loss.
RUNS: dict[str, tuple[dict[str, Any], Policy, Loss]] = {
    "no teacher": (
        REFRESHED | {"teacher": None, "reward": "correct"},
        Student(),
        PolicyGradient(GroupReward("none", "none")),
    ),
    "recorded answers": (REFRESHED, Offline(), ReverseKL(support="teacher_top_k")),
    "a teacher that is a server": (SERVED | REFRESHED, Student(), ReverseKL(support="teacher_top_k")),
    "a teacher on the student's DoRA": (
        REFRESHED | {"teacher": {"weights": "student"}, "student": {"path": "s", "adapter": {"method": "dora"}}},
        Student(),
        ReverseKL(),
    ),
    "tokens of the student alone": (REFRESHED, Student(), ReverseKL()),
    "too few answers": (
        REFRESHED | {"rollout": {"samples_per_prompt": 1}},
        Teacher(),
        SampledReverseKL(baseline="leave_one_out"),
    ),
    "a reference that stays": ({}, Teacher(), ReverseKL()),
    "answers that are not rated": (REFRESHED, Teacher(), ReverseKL()),
    "answers that are not paired": (REFRESHED | {"reward": "correct"}, Teacher(), ReverseKL()),
}


@dataclass(frozen=True)
class Asks(Weighting):
    """A weighting that needs a fact."""

    fact: Fact = Fact.reward

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({self.fact})

    def __call__(self, batch: Batch, uniforms_N: torch.Tensor | None = None) -> torch.Tensor:
        return torch.ones(batch.num_tokens)


def made(member: type[Any]) -> Any:
    """A member with numbers for what it requires."""
    required = [each for each in fields(member) if each.init and each.default is each.default_factory is MISSING]
    return member(**{each.name: 4 if each.name.startswith("num_") else 0.5 for each in required})


def config_of(**tables: Any) -> RunConfig:
    named = {"student": "s", "teacher": "t", "data": "prompts.jsonl"} | tables
    return resolve_config({name: table for name, table in named.items() if table is not None})


LINES = [(name, fact) for name, circumstance in CIRCUMSTANCES.items() for fact in circumstance.unknown]


@pytest.mark.parametrize(("name", "fact"), LINES, ids=[f"{name}: {fact.name}" for name, fact in LINES])
def test_a_part_that_needs_what_a_run_does_not_know_is_refused_with_a_remedy(name: str, fact: Fact) -> None:
    tables, policy, loss = RUNS[name]
    config, circumstance = config_of(**tables), CIRCUMSTANCES[name]
    recipe = Recipe(policy, TEACHER, (loss,), Asks(fact))
    assert circumstance.holds(config, recipe) and fact not in facts_offered(config, recipe)
    (need,) = [each for each in needs_of(config, recipe) if each.kind == "weighting"]
    refusal = circumstance.refusal(need, config, recipe)
    assert refusal is not None and refusal.startswith(f"the weighting {Asks(fact)} {USES[fact]}, ")
    remedy = circumstance.remedies.get("weighting", circumstance.remedies[""])
    assert refusal.endswith(remedy.format(config=config, recipe=recipe, need=need)) and "{" not in refusal
    with pytest.raises(ConfigurationError) as caught:
        check_facts(config, recipe)
    assert name == "too few answers" or str(caught.value) == refusal  # there the loss is refused first


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_offers(name: str) -> None:
    tables, policy, loss = RUNS[name]
    recipe = Recipe(policy, TEACHER, (loss,))
    unknown = {*CIRCUMSTANCES[name].unknown, Fact.pair}
    if "reward" not in tables:
        unknown.add(Fact.reward)
    if name in ("a teacher that is a server", "a teacher on the student's DoRA"):
        unknown.add(Fact.teacher_drawn)
    assert facts_offered(config_of(**tables), recipe) == frozenset(Fact) - unknown


def test_every_fact_can_be_said() -> None:
    assert USES.keys() == set(Fact) and RUNS.keys() == CIRCUMSTANCES.keys()


@pytest.mark.parametrize("tables", [{}, SERVED, REFRESHED, {"rollout": {"samples_per_prompt": 1}}])
def test_every_combination_of_members_is_refused_or_knows_what_it_needs(tables: dict[str, Any]) -> None:
    config, refused, accepted = config_of(**tables), 0, 0
    policies, targets, weightings = (list(map(made, axis.values())) for axis in (POLICIES, TARGETS, WEIGHTINGS))
    losses = [*map(made, LOSSES.values()), SampledReverseKL(baseline="leave_one_out")]
    for policy, target, loss, weighting in product(policies, targets, losses, weightings):
        try:
            recipe = Recipe(policy, target, (loss,), weighting)
        except ConfigurationError:
            continue  # parts that contradict each other
        needs = recipe.needs | ({Fact.teacher_step} if policy.needs_teacher else set())
        is_known = needs <= facts_offered(config, recipe)
        try:
            check_facts(config, recipe)
            accepted += 1
            assert is_known, recipe
        except ConfigurationError:
            refused += 1
            assert not is_known, recipe
    assert accepted and refused


def test_a_term_is_named_by_its_place() -> None:
    terms = [{"name": "reverse_kl", "support": "teacher_top_k"}, {"name": "forward_kl", "support": "full"}]
    with pytest.raises(ConfigurationError, match=r"^loss\[1\]\.support is 'full', but .* Set loss\[1\]\.support = "):
        build_phases(config_of(loss=terms, **SERVED))
    with pytest.raises(ConfigurationError, match=r"compares a preferred answer with a rejected one, but a run has no"):
        build_phases(config_of(loss=[{"name": "dpo"}]))


def test_a_phase_is_named() -> None:
    phases = [{"name": "warm", "steps": 5, "policy": {"name": "teacher"}}, {"policy": {"name": "student"}}]
    divergence = {"name": "sampled_nll"}
    with pytest.raises(ConfigurationError, match=r"^phase '2': the loss SampledNLL imitates the sampled tokens, but"):
        build_phases(config_of(phase=phases, divergence=divergence))


def test_a_new_part_says_what_it_needs_and_nothing_else_changes() -> None:
    @dataclass(frozen=True)
    class Rated(TokenLoss):
        @property
        def advantage(self) -> Any:
            return None

        @property
        def needs(self) -> frozenset[Fact]:
            return frozenset({Fact.reward})

        def on_tokens(self, logprobs_n: torch.Tensor, facts: TokenFacts) -> torch.Tensor:
            return logprobs_n

    with pytest.raises(ConfigurationError, match="the loss Rated asks what an answer is worth, but the run has no"):
        check_facts(config_of(), Recipe(Student(), TEACHER, (Rated(),)))


def test_targets_are_told_apart_by_their_third_model() -> None:
    kinds: set[type[TargetRule]] = {each for each in TARGETS.values() if each.needs}
    assert {fact for each in kinds for fact in each.needs} == {Fact.reference, Fact.moving_reference}


def test_a_constant_advantage_on_the_students_own_tokens_needs_a_choice_among_them() -> None:
    unlearned = {"loss": [{"name": "clipped_surrogate", "advantage": {"name": "constant", "value": -0.5}}]}
    for weighting in ("uniform", "tip", {"name": "token_share", "chosen": "random"}):
        with pytest.raises(ConfigurationError, match=r"imitates the sampled tokens, but the .*'token_share'"):
            build_phases(config_of(weighting=weighting, **unlearned))
    (phase,) = build_phases(config_of(weighting="token_share", teacher=None, **unlearned))
    assert not phase.recipe.asks_teacher
