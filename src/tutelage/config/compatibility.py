"""Does a run know what its parts need?  One vocabulary, `types.Fact`, for what a part needs and what a run offers.

Every rule about parts that do not work together is a line of the table `CIRCUMSTANCES`: in such a run these facts are
not known, and this is what to do about it. A new part says what it needs, and a new way to run what it cannot know;
neither has to know of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.training import Recipe
from tutelage.training.recipe import OF_TEACHER, window_of
from tutelage.types import Fact

__all__ = ["CIRCUMSTANCES", "USES", "Circumstance", "Need", "check_facts", "facts_offered", "needs_of"]

# What a part that needs a fact does with it, for messages.
USES: Mapping[Fact, str] = {
    Fact.behaviour_token: "weighs tokens by the probability that they were sampled with",
    Fact.student_token: "asks how probable each token was to the student at the rollout",
    Fact.student_support: "looks at the student's most probable tokens at the rollout",
    Fact.teacher_token: "asks how probable each token is to the teacher",
    Fact.teacher_support: "compares both models on the student's most probable tokens",
    Fact.teacher_top: "looks at the teacher's most probable tokens",
    Fact.teacher_full: "looks at the teacher's whole distribution",
    Fact.teacher_layers: "compares layers with those of the teacher",
    Fact.teacher_step: "asks the teacher at every token",
    Fact.teacher_drawn: "imitates the sampled tokens",
    Fact.reference: "compares with a third model",
    Fact.moving_reference: "looks at the student as it was",
    Fact.group: "compares answers to one prompt",
    Fact.reward: "asks what an answer is worth",
    Fact.pair: "compares a preferred answer with a rejected one",
}


@dataclass(frozen=True)
class Need:
    """A fact that a part of a recipe needs.

    Fields:
      kind: of the part: "policy", "loss", "weighting" or "target".
      key: of the part's table in the run file, such as "loss[1]".
      claim: the part and what it does, or the setting that says so.
      fact: what must be known.
    """

    kind: str
    key: str
    claim: str
    fact: Fact


@dataclass(frozen=True)
class Circumstance:
    """Something in a run because of which facts are not known.

    Fields:
      holds: whether it is so in a run with a recipe.
      unknown: each of the facts -> why it is not known. What stands in braces is of `config`, `recipe` or `need`.
      remedies: kind of the part that needs one -> what to do; "" is the rest.
    """

    holds: Callable[[RunConfig, Recipe], bool]
    unknown: Mapping[Fact, str]
    remedies: Mapping[str, str]

    def refusal(self, need: Need, config: RunConfig, recipe: Recipe) -> str | None:
        """Why the need cannot be met, and what to do; None = it does not fail because of this."""
        if need.fact not in self.unknown or not self.holds(config, recipe):
            return None
        remedy = self.remedies.get(need.kind, self.remedies[""])
        advice = f"{self.unknown[need.fact]}. {remedy}".format(config=config, recipe=recipe, need=need)
        return f"{need.claim}, {advice}"


_NONE_TO_COMPARE = "which is for a comparison with a teacher, and the run has none"
_NOT_ASKED = "but the policy is 'offline', and the student was not asked"
_WROTE_TOP = "but the policy is 'offline', and the teacher wrote down its own most probable tokens"
_NOT_READ = "which has not read the answers that the policy 'offline' takes"
_TELLS_TOP = "but a teacher server reports only its own most probable tokens"
_TOP_REMEDY = "Use {need.key}.support = 'teacher_top_k' with a divergence such as forward_kl, or sampled_nll."

CIRCUMSTANCES: Mapping[str, Circumstance] = {
    "no teacher": Circumstance(
        lambda config, recipe: not config.has_teacher,
        dict.fromkeys(sorted(OF_TEACHER), "but the run has no teacher")
        | dict.fromkeys((Fact.teacher_support, Fact.teacher_top, Fact.teacher_full), _NONE_TO_COMPARE),
        {"": "Name one: --set teacher=PATH."},
    ),
    "recorded answers": Circumstance(
        lambda config, recipe: recipe.policy.is_offline,
        {
            Fact.behaviour_token: "but the policy is 'offline', and that probability is not known",
            Fact.student_token: _NOT_ASKED,
            Fact.student_support: _NOT_ASKED,
            Fact.teacher_support: _WROTE_TOP,
            Fact.teacher_full: _WROTE_TOP,
            Fact.reference: _NOT_READ,
            Fact.moving_reference: _NOT_READ,
        },
        {
            "": _TOP_REMEDY,
            "weighting": "Use weighting = 'uniform' or 'position_decay'.",
            "target": "Use target = 'teacher', 'bridge' or 'proximal'.",
        },
    ),
    "a teacher that is a server": Circumstance(
        lambda config, recipe: bool(config.teacher.servers),
        {
            Fact.teacher_step: "and a server reads finished answers only",
            Fact.teacher_support: _TELLS_TOP,
            Fact.teacher_full: _TELLS_TOP,
            Fact.teacher_layers: _TELLS_TOP,
        },
        {
            "": "Set {need.key}.support = 'teacher_top_k', or load every teacher here (leave its server out).",
            "policy": "Load every teacher here (leave its server out), or set policy = 'student'.",
            "weighting": "Set weighting = 'uniform', or load every teacher here (leave its server out).",
        },
    ),
    "a teacher on the student's DoRA": Circumstance(
        lambda config, recipe: (
            config.teacher.is_student and getattr(config.student.what_learns, "method", "") == "dora"
        ),
        {Fact.teacher_step: "and it would decode on the student's own layers, of which DoRA keeps the norms"},
        {"": "Set policy = 'student', or student.adapter.method = 'lora'."},
    ),
    "tokens of the student alone": Circumstance(
        lambda config, recipe: not (recipe.policy.needs_teacher or recipe.policy.is_offline),
        {
            Fact.teacher_drawn: "but the policy {recipe.policy} draws them without the teacher, so there is nothing to "
            "learn from them"
        },
        {"": "Set policy = 'teacher', or weighting = 'token_share', which chooses among them."},
    ),
    "too few answers": Circumstance(
        lambda config, recipe: config.rollout.samples_per_prompt < recipe.min_samples_per_prompt,
        {Fact.group: "but rollout.samples_per_prompt is {config.rollout.samples_per_prompt}"},
        {"": "Set it to at least {recipe.min_samples_per_prompt}."},
    ),
    "a reference that stays": Circumstance(
        lambda config, recipe: not config.reference.refresh_every,
        {Fact.moving_reference: "but reference.refresh_every is 0"},
        {"": "Set it to a number of steps, such as an epoch's."},
    ),
    "answers that are not rated": Circumstance(
        lambda config, recipe: not config.reward,
        {Fact.reward: "but the run has no [[reward]], so its answers are not rated"},
        {
            "": "Add one, such as reward = 'correct' for the verifier's verdict, or use a loss that learns from the "
            "teacher."
        },
    ),
    "answers that are not paired": Circumstance(
        lambda config, recipe: True,
        {Fact.pair: "but a run has no part yet that makes pairs of its answers"},
        {"": "Use a loss that learns from the teacher, such as 'reverse_kl'; from Python, see `types.Batch`."},
    ),
}


def needs_of(config: RunConfig, recipe: Recipe) -> Iterator[Need]:
    """What the parts of a recipe need, and which part it is."""
    if recipe.policy.needs_teacher:
        fact = Fact.teacher_step
        yield Need("policy", "policy", f"the policy {recipe.policy} {USES[fact]}", fact)
    for place, loss in enumerate(recipe.losses):
        key, window = f"loss[{place}]" if config.loss else "divergence", window_of(loss)
        for fact in _in_order(recipe.needs_of(loss)):
            claim = f"the loss {type(loss).__name__} {USES[fact]}"
            if window is not None and fact == window.fact:
                claim = f"{key}.support is {window.name!r}"
            yield Need("loss", key, claim, fact)
    for kind, part in (("weighting", recipe.weighting), ("target", recipe.target)):
        for fact in _in_order(part.needs):
            yield Need(kind, kind, f"the {kind} {part} {USES[fact]}", fact)


def _in_order(facts: frozenset[Fact]) -> list[Fact]:
    return [fact for fact in Fact if fact in facts]


def facts_offered(config: RunConfig, recipe: Recipe) -> frozenset[Fact]:
    """What is known of the batches of a run with a recipe."""
    holding = [each for each in CIRCUMSTANCES.values() if each.holds(config, recipe)]
    return frozenset(Fact).difference(*(each.unknown for each in holding))


def check_facts(config: RunConfig, recipe: Recipe) -> None:
    """Refuse a recipe with a part that needs what the run does not know.

    Raises:
      ConfigurationError: names the part, why the fact is not known, and what to do.
    """
    for need in needs_of(config, recipe):
        for circumstance in CIRCUMSTANCES.values():
            refusal = circumstance.refusal(need, config, recipe)
            if refusal is not None:
                raise ConfigurationError(refusal)
