"""What every weighting keeps. A new member joins by a line in MEMBERS."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.quick_run import metrics_of
from tests.support.rollouts import make_rollouts
from tests.support.tiny_run import write_run_file
from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Rollout
from tutelage.weighting import WEIGHTINGS, PositionDecay, Tip, TokenShare, Tropd, Uniform, Weighting

MEMBERS: list[Weighting] = [
    Uniform(),
    Tip(),
    Tip(share=0.2),
    Tip(selector="entropy"),
    Tip(selector="q3", share=0.1),
    Tip(share=1.0),
    PositionDecay(),
    PositionDecay(half_life=2),
    Tropd(),
    Tropd(acceptance="expected"),
    TokenShare(),
    TokenShare(share=0.5, over="answer"),
    TokenShare(chosen="random"),
]

# Fields that cannot work, each with the words that must be in the refusal.
IMPOSSIBLE = [
    (Tip, {"share": 0}, r"^weighting\.share is 0; expected a share above 0, at most 1"),
    (Tip, {"share": 1.5}, r"weighting\.share is 1\.5"),
    (Tip, {"share": math.nan}, r"weighting\.share is nan"),
    (Tip, {"selector": "random"}, r"weighting\.selector is 'random'; expected one of soft_or, entropy, q3"),
    (PositionDecay, {"half_life": 0}, r"weighting\.half_life is 0; expected a number of tokens above 0"),
    (TokenShare, {"share": 0}, r"weighting\.share is 0; expected a share above 0, at most 1"),
    (TokenShare, {"chosen": "rare"}, r"weighting\.chosen is 'rare'; expected one of least_probable, random"),
    (TokenShare, {"over": "prompt"}, r"weighting\.over is 'prompt'; expected one of batch, answer"),
    (Tropd, {"acceptance": "always"}, r"weighting\.acceptance is 'always'; expected one of sampled, expected"),
]

every_member = pytest.mark.parametrize("weighting", MEMBERS, ids=repr)


def weigh(weighting: Weighting, rollouts: list[Rollout], uniforms: Tensor | None = None) -> Tensor:
    records = Batch(rollouts)
    if uniforms is None:
        uniforms = torch.rand(records.num_tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return weighting(records, uniforms if weighting.is_random else None)


def test_every_member_is_here() -> None:
    assert {type(weighting) for weighting in MEMBERS} == set(WEIGHTINGS.values())


@every_member
def test_one_weight_per_token_never_negative(weighting: Weighting) -> None:
    rollouts = make_rollouts()
    weights = weigh(weighting, rollouts)
    assert weights.shape == (25,) and weights.dtype.is_floating_point
    assert (weights >= 0).all() and weights.isfinite().all() and weights.sum() > 0
    assert not weights.requires_grad
    assert torch.equal(weights, weigh(weighting, rollouts)), "the same batch twice"


@every_member
def test_the_order_of_answers_changes_nothing(weighting: Weighting) -> None:
    rollouts, lengths = make_rollouts(), [7, 1, 12, 5]
    uniforms = torch.rand(25, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parts = torch.split(weigh(weighting, rollouts, uniforms), lengths)
    order = [2, 0, 3, 1]
    moved = weigh(
        weighting, [rollouts[i] for i in order], torch.cat([torch.split(uniforms, lengths)[i] for i in order])
    )
    torch.testing.assert_close(moved, torch.cat([parts[i] for i in order]))


@every_member
def test_equal_models_are_no_special_case(weighting: Weighting) -> None:
    rollouts = [
        rollout.with_tokenwise(
            {
                "teacher.logprobs_T": rollout.student_logprobs,
                "teacher.support_logprobs_TK": rollout.student.support_logprobs_TK,
                "teacher.tail_logprobs_T": (1 - rollout.student.support_logprobs_TK.exp().sum(-1)).log(),
            }
        )
        for rollout in make_rollouts()
    ]
    weights = weigh(weighting, rollouts)
    assert weights.isfinite().all() and weights.sum() > 0
    if isinstance(weighting, Tropd):
        assert (weights == 1).all()


@every_member
def test_what_the_teacher_forbids_gives_no_nan(weighting: Weighting) -> None:
    rollouts = make_rollouts()
    rollouts[0].teacher_logprobs[:3] = -math.inf
    rollouts[0].teacher.support_logprobs_TK[:3, :2] = -math.inf
    rollouts[2].teacher.tail_logprobs_T[:] = -math.inf
    weights = weigh(weighting, rollouts)
    assert weights.isfinite().all()
    if isinstance(weighting, Tropd):
        assert (weights[:3] == 0).all()


@every_member
def test_a_single_token_counts(weighting: Weighting) -> None:
    assert weigh(weighting, make_rollouts(lengths=(1,)), torch.zeros(1).double()).item() > 0


@every_member
def test_is_frozen_and_hashable(weighting: Weighting) -> None:
    assert hash(weighting) == hash(dataclasses.replace(weighting))
    for field in dataclasses.fields(weighting):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(weighting, field.name, 1.0)


@pytest.mark.parametrize(("member", "fields", "message"), IMPOSSIBLE)
def test_refuses_impossible_fields_with_the_reason(
    member: type[Weighting], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        member(**fields)


# --- a member of one's own: a class, and a line in a table ------------------------------------------------------------


@dataclass(frozen=True)
class Early(Weighting):
    """w = 2^(-t / tokens)"""

    tokens: float = 4.0

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        return (batch.positions_N * (-math.log(2) / self.tokens)).exp()


@pytest.mark.runs
def test_a_member_of_ones_own_is_found_by_name_and_weighs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run learns with it what it learns with the library's decay, and not what it learns from a plain mean."""
    monkeypatch.setitem(WEIGHTINGS, "early", Early)
    path = write_run_file(tmp_path, steps=2)
    losses = {
        name: [step["loss"] for step in metrics_of(path, tmp_path / name, "policy=student", f"weighting={table}")]
        for name, table in {
            "ours": "{name='early',tokens=2.0}",
            "theirs": "{name='position_decay',half_life=2.0}",
            "plain": "uniform",
        }.items()
    }
    assert losses["ours"] == losses["theirs"] != losses["plain"]
