"""Drafts change how fast tokens come and nothing about which.

Three things together say so: the rule has the law of mu (`test_drafts`, to a stratum), the engine does token for token
what a plain walk by that rule does, and samples of it follow the enumerated law.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.enumerated import SMALL, Law, NextToken, chi_square_p_value, enumerated_law, make_world, walk
from tests.support.tiny_models import make_model
from tutelage.errors import NonFiniteError
from tutelage.models import LanguageModel, recurrent
from tutelage.models.caches import HybridCache
from tutelage.policies import Behaviour, FixedBlend, Interleaved, Mixture, Policy, Teacher, TeacherPrefix, TrustRegion
from tutelage.rollout import Limits, PairedEngine, uniforms
from tutelage.rollout.decoding import drafts
from tutelage.rollout.decoding.draft_length import Costs, DraftLength
from tutelage.types import Prompt, Rollout

pytestmark = pytest.mark.rollouts

POLICIES: list[Policy] = [
    TrustRegion(kl_radius=0.01),
    TrustRegion(kl_radius=0.2),
    FixedBlend(blend=0.4),
    Mixture(weight=0.4),
    Interleaved(top_k=2, teacher_temperature=0.5),
    Interleaved(top_k=1, teacher_temperature=0.0),
    Teacher(),
]
# The one policy that acts by the place in the answer, which differs from row to row within a round.
GUIDED = TeacherPrefix(num_tokens=2)
NUM_SEQUENCES = 10_000  # enough for the wrong rules below to be found out
# A hundred p-values are looked at; a fair engine falls below this once in a thousand runs of the suite.
SUSPICIOUS = 1e-5
PLACES = torch.arange(7)

HYBRID_PAIRS = [
    ("qwen3_5", "qwen3_next"),
    ("qwen3_next", "llama"),
    ("qwen3", "qwen3_5"),
    ("linear_qwen3", "linear_llama"),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


def sampled(
    policy: Policy, prompt: Prompt, vocabulary: int, length: int, draft_length: int
) -> tuple[Counter[tuple[int, ...]], Law]:
    """Counts of sampled answers, and the law that they should follow."""
    student, teacher = make_world(vocabulary=vocabulary, **SMALL)
    engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=NUM_SEQUENCES))
    rollouts = engine.generate(
        policy, [prompt], max_new_tokens=length, num_samples=NUM_SEQUENCES, seed=17, records_statistics=False
    )
    law = enumerated_law(student, teacher, policy, prompt, length)
    return Counter(tuple(rollout.response_tokens) for rollout in rollouts), law


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("policy", "draft_length"),
    [
        *((policy, 4) for policy in [*POLICIES, GUIDED]),
        *((policy, n) for policy in (POLICIES[1], Teacher()) for n in (2, 7)),
    ],
    ids=str,
)
def test_sequences_follow_the_product_of_mu(policy: Policy, draft_length: int) -> None:
    """10,000 sequences of up to 4 tokens over 5; drafts reach beyond the limit, and stop tokens are everywhere.

    Other draft lengths and slots give the same tokens (below), so one length per policy is enough.
    """
    counts, law = sampled(policy, Prompt([2]), 5, 4, draft_length)
    assert chi_square_p_value(counts, law) > SUSPICIOUS
    assert len(law) > 1 or policy == Interleaved(1, 0.0)


@pytest.mark.statistics
@every_policy
def test_sequences_follow_the_product_of_mu_with_a_teacher_that_reads_something_else(policy: Policy) -> None:
    counts, law = sampled(policy, Prompt([1, 2, 3], teacher_tokens=[3, 0, 1, 1, 2]), 6, 3, 3)
    assert chi_square_p_value(counts, law) > SUSPICIOUS


def accepting_everything(student: Behaviour, behaviour: Behaviour, tokens: Tensor, keeps: Tensor) -> drafts.Verdict:
    return drafts.Verdict(tokens, torch.full((len(tokens),), tokens.shape[1]), torch.zeros_like(tokens, dtype=bool))


def replacing_from_behaviour(student: Tensor, behaviour: Tensor) -> Tensor:
    """A replacement drawn from mu itself instead of from what mu has more than p."""
    return behaviour.double()


def replacing_from_unclamped(student: Tensor, behaviour: Tensor) -> Tensor:
    """|mu - p| instead of (mu - p)+."""
    return (behaviour.double().exp() - student.double().exp()).abs().log()


def judging_by_a_stale_student(
    student: Behaviour, behaviour: Behaviour, tokens: Tensor, keeps: Tensor
) -> drafts.Verdict:
    """The student's distribution of the place before, as if it had not read its own draft."""
    stale = torch.cat([student.logprobs_BV[:, :1], student.logprobs_BV[:, :-1]], dim=1)
    return judge_drafts(Behaviour(stale), behaviour, tokens, keeps)


judge_drafts = drafts.judge_drafts


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("judge_drafts", accepting_everything),
        ("judge_drafts", judging_by_a_stale_student),
        ("residual_logprobs", replacing_from_behaviour),
        ("residual_logprobs", replacing_from_unclamped),
    ],
)
@pytest.mark.parametrize("policy", [TrustRegion(kl_radius=0.2), Teacher()], ids=str)
def test_wrong_rules_are_found_out(monkeypatch: pytest.MonkeyPatch, policy: Policy, name: str, wrong: object) -> None:
    """The power of the tests above: each of these mistakes makes them fail."""
    monkeypatch.setattr(drafts, name, wrong)
    counts, law = sampled(policy, Prompt([2]), 5, 4, 4)
    assert chi_square_p_value(counts, law) < SUSPICIOUS


@pytest.mark.statistics
def test_places_counted_from_the_rounds_start_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that begins anew with every round."""
    propose = TeacherPrefix.propose

    def forgetting(self: TeacherPrefix, student: Tensor, teacher: Tensor, positions: Tensor) -> Behaviour:
        is_round = positions.ndim == 2  # and not the enumeration, which asks for one place at a time
        return propose(self, student, teacher, positions - positions[:, :1] if is_round else positions)

    counts, law = sampled(GUIDED, Prompt([2]), 5, 4, 2)
    assert chi_square_p_value(counts, law) > SUSPICIOUS
    monkeypatch.setattr(TeacherPrefix, "propose", forgetting)
    counts, law = sampled(GUIDED, Prompt([2]), 5, 4, 2)
    assert chi_square_p_value(counts, law) < SUSPICIOUS


@pytest.mark.statistics
def test_tokens_kept_after_a_refusal_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale student after a refusal: drafts made for the refused token are kept behind its replacement."""

    def one_refusal_forgiven(*arguments: Any) -> drafts.Verdict:
        verdict = judge_drafts(*arguments)
        behind = (verdict.lengths_B + 1).clamp_max(verdict.tokens_BL.shape[1])
        return verdict._replace(lengths_B=behind)

    monkeypatch.setattr(drafts, "judge_drafts", one_refusal_forgiven)
    counts, law = sampled(Teacher(), Prompt([2]), 5, 4, 4)
    assert chi_square_p_value(counts, law) < SUSPICIOUS


@pytest.mark.parametrize("policy", [*POLICIES, GUIDED], ids=str)
def test_tokens_are_those_of_a_plain_walk(policy: Policy) -> None:
    """In float64, where no rounding tips a draw."""
    student, teacher = make_world(vocabulary=6, dtype=torch.float64, **SMALL)
    prompts = [Prompt([1]), Prompt([1, 2], teacher_tokens=[4, 4, 4, 1])]
    engine = PairedEngine(student, teacher, draft_length=3)
    rollouts = engine.generate(policy, prompts, max_new_tokens=7, num_samples=9, seed=3, step=5)
    following = [NextToken(student, teacher, policy, prompt) for prompt in prompts]
    for rollout in rollouts:
        streams = uniforms(3, 5, torch.tensor([rollout.prompt_index]), torch.tensor([rollout.sample_index]), PLACES)
        assert rollout.response_tokens == walk(following[rollout.prompt_index], *streams, is_drafted=True)


@pytest.fixture(params=["after each token", "after the last token", "read again"])
def states_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which states of a round are kept: as on a CPU, as on an accelerator, and where there is no memory."""
    if request.param != "after each token":
        monkeypatch.setattr(recurrent, "MAX_SINGLE_TOKENS", 1)  # blocks are read as blocks
    if request.param == "read again":
        monkeypatch.setattr(recurrent, "KEPT_STATE_BYTES", 0)


@pytest.mark.usefixtures("states_kept")
@pytest.mark.parametrize("architectures", HYBRID_PAIRS, ids="-".join)
@pytest.mark.parametrize("policy", [TrustRegion(kl_radius=0.2), Teacher()], ids=str)
def test_tokens_of_recurrent_layers_are_those_of_a_plain_walk(policy: Policy, architectures: tuple[str, str]) -> None:
    """States are taken back exactly where a draft is refused, row by row; lock-step has nothing to take back."""
    student, teacher = make_world(4, 6, torch.float64, architectures)
    prompts = [Prompt([1]), Prompt([1, 2], teacher_tokens=[4, 4, 4, 1]), Prompt([3, 3, 1, 2, 0])]
    settings = {"max_new_tokens": 7, "num_samples": 6, "seed": 3, "step": 5}
    following = [NextToken(student, teacher, policy, prompt) for prompt in prompts]
    for draft_length, is_drafted in ((3, True), (5, True), (1, False)):
        engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=7))
        rollouts = engine.generate(policy, prompts, **settings)
        assert not is_drafted or any(bool(rollout.replaced[:-1].any()) for rollout in rollouts)
        for rollout in rollouts:
            streams = uniforms(3, 5, torch.tensor([rollout.prompt_index]), torch.tensor([rollout.sample_index]), PLACES)
            assert rollout.response_tokens == walk(following[rollout.prompt_index], *streams, is_drafted=is_drafted)


@pytest.mark.parametrize("architectures", HYBRID_PAIRS, ids="-".join)
def test_states_that_are_not_taken_back_are_found_out(
    architectures: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power of the test above: a round that goes on from states that have read what was refused."""

    def forgetting(self: HybridCache, lengths_B: Tensor) -> None:
        self.fill(self.states, lengths_B.cpu())

    monkeypatch.setattr(HybridCache, "roll_back", forgetting)
    with pytest.raises(AssertionError):
        test_tokens_of_recurrent_layers_are_those_of_a_plain_walk(Teacher(), architectures)


def tokens_of(rollouts: list[Rollout]) -> list[tuple[int, int, list[int], bool]]:
    return [(r.prompt_index, r.sample_index, r.response_tokens, r.finished) for r in rollouts]


@pytest.mark.sweeps
@pytest.mark.parametrize("policy", [*POLICIES, GUIDED], ids=str)
def test_neither_slots_nor_draft_lengths_change_a_token(policy: Policy) -> None:
    """In float64, where no rounding tips a draw: 1, 3, 5, 8 slots or all at once; 2, 4 or 7 drafts, or as many as pay.

    With the plain walk above, this is the law of all.
    """
    student, teacher = make_world(vocabulary=6, dtype=torch.float64, **SMALL)
    prompts = [Prompt([1]), Prompt([2, 3, 4]), Prompt([1, 2], teacher_tokens=[4, 4, 4, 1]), Prompt([3, 3, 1, 2, 0])]
    settings = {"max_new_tokens": 11, "num_samples": 4, "seed": 3, "step": 5}
    expected = PairedEngine(student, teacher, draft_length=4).generate(policy, prompts, **settings)
    assert len({tuple(rollout.response_tokens) for rollout in expected}) > 1
    for slots, draft_length in [(1, 4), (3, 4), (8, 4), (8, 2), (16, 7), (5, 7), (8, "auto"), (16, "estimated")]:
        engine = PairedEngine(student, teacher, draft_length=draft_length, limits=Limits(max_rows=slots))
        rollouts = engine.generate(policy, prompts, **settings)
        assert tokens_of(rollouts) == tokens_of(expected), (slots, draft_length)
        for rollout, other in zip(rollouts, expected, strict=True):
            assert torch.equal(rollout.replaced, other.replaced)
            torch.testing.assert_close(rollout.behaviour_logprobs, other.behaviour_logprobs, rtol=1e-9, atol=1e-9)


@pytest.mark.statistics
def test_the_kept_share_obeys_pinsker() -> None:
    """Kept with probability 1 - TV(mu, p) >= 1 - sqrt(radius / 2)."""
    student, teacher = make_world(vocabulary=40)
    for radius in (0.001, 0.01, 0.05):
        engine = PairedEngine(student, teacher, draft_length=4)
        rollouts = engine.generate(TrustRegion(radius), [[1]], max_new_tokens=40, num_samples=100)
        replaced = torch.cat([rollout.replaced for rollout in rollouts]).double()
        assert 1 - replaced.mean() > 1 - (radius / 2) ** 0.5 - 3 * float(replaced.std()) / len(replaced) ** 0.5
        assert replaced.any()


def test_equal_models_keep_every_draft() -> None:
    student = make_model("qwen3", vocab_size=12, stop_ids=5, seed=1)
    teacher = make_model("qwen3", vocab_size=12, stop_ids=5, seed=1)
    engine = PairedEngine(student, teacher, draft_length=4)
    rollouts = engine.generate(TrustRegion(0.01), [[1], [2, 3]], max_new_tokens=30, num_samples=8)
    assert not any(bool(rollout.replaced.any()) for rollout in rollouts)
    # So a row takes one forward of the teacher per four tokens, the last of which may be cut.
    assert all(rollout.teacher_forwards == -(-len(rollout) // 4) for rollout in rollouts)


def test_forwards_are_counted_per_rollout() -> None:
    student, teacher = make_world(vocabulary=12)
    lock_step = PairedEngine(student, teacher, draft_length=1).generate(Teacher(), [[1]], max_new_tokens=20)
    assert lock_step[0].teacher_forwards == len(lock_step[0]) and lock_step[0].replaced is None
    drafted = PairedEngine(student, teacher, draft_length=4).generate(
        Teacher(), [[1]], max_new_tokens=20, num_samples=20
    )
    for rollout in drafted:
        replaced = int(rollout.replaced.sum())
        # Every round but the last ends with a replacement or after four tokens.
        assert len(rollout) / 4 <= rollout.teacher_forwards <= replaced + len(rollout) / 4 + 1


@pytest.mark.parametrize("architectures", [("qwen3", "llama"), HYBRID_PAIRS[0]], ids="-".join)
def test_a_draft_may_reach_over_the_end_of_the_context(architectures: tuple[str, str]) -> None:
    """The answer's limit is the context's end, and drafts of seven run over it, where positions may not exist."""
    student, teacher = make_world(3, 6, torch.float64, architectures, max_position_embeddings=12)
    prompts, settings = [[1, 2, 3], [2]], {"max_new_tokens": 9, "num_samples": 20}
    expected = PairedEngine(student, teacher, draft_length=2).generate(Teacher(), prompts, **settings)
    rollouts = PairedEngine(student, teacher, draft_length=7).generate(Teacher(), prompts, **settings)
    assert tokens_of(rollouts) == tokens_of(expected)
    assert any(len(rollout) == 9 for rollout in rollouts)


@pytest.mark.parametrize("architectures", [("qwen3", "llama"), ("qwen3", "qwen3_5")], ids="-".join)
def test_a_length_is_timed_with_what_its_own_drafts_cost_to_take_back(
    architectures: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round begins with taking back what the one before has drafted, which attention does for nothing."""
    chosen, timed = [], []

    def choose(self: DraftLength, num_rows: int, most: int) -> int:
        chosen.append(min(most, (2, 2, 3, 3, 3, 2)[len(chosen) % 6]))
        return chosen[-1]

    monkeypatch.setattr(DraftLength, "choose", choose)
    monkeypatch.setattr(Costs, "time", lambda self, num_rows, length, *seconds: timed.append(length))
    student, teacher = make_world(0, 40, torch.float64, architectures)
    PairedEngine(student, teacher, draft_length="auto").generate(
        Teacher(), [[1], [2, 3]], max_new_tokens=30, num_samples=4
    )
    repeated = [length for before, length in zip([0, *chosen], chosen, strict=False) if before == length]
    assert timed == (chosen if architectures[1] == "llama" else repeated)
    assert len(repeated) not in (0, len(chosen))


def test_nan_of_the_teacher_is_named() -> None:
    student, teacher = make_world(vocabulary=6)
    with torch.no_grad():
        teacher.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="student or the teacher are NaN"):
        PairedEngine(student, teacher, draft_length=3).generate(TrustRegion(0.1), [[1]], max_new_tokens=8)


def test_drafts_longer_than_a_block_of_random_numbers() -> None:
    """And no cache grows beyond what `rows_that_fit` counted."""
    student, teacher = (LanguageModel(make_model("qwen3", vocab_size=6, seed=seed, **SMALL)) for seed in (0, 1))
    prompts, settings = [[2, 1], [4]], {"max_new_tokens": 80, "num_samples": 1, "seed": 3}
    expected = PairedEngine(student, teacher, draft_length=4).generate(TrustRegion(0.05), prompts, **settings)
    assert {len(rollout) for rollout in expected} == {80}, "nothing stops these models"
    caches = []

    class Watched(LanguageModel):
        def new_cache(self, *given: int) -> Any:
            caches.append(super().new_cache(*given))
            return caches[-1]

    for draft_length in (65, 1000):
        engine = PairedEngine(student, Watched(teacher.module), draft_length=draft_length, limits=Limits(max_rows=2))
        assert tokens_of(engine.generate(TrustRegion(0.05), prompts, **settings)) == tokens_of(expected)
        assert max(cache.capacity for cache in caches) <= 2 + 80 + min(draft_length, 80) - 1
