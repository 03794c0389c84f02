from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.objectives import objective_of
from tests.support.rollouts import rated, rollout_of
from tests.support.tiny_models import make_model
from tutelage.advantages import GroupReward
from tutelage.divergences import ResidualReverseKL, ReverseKL, SampledNLL, SampledReverseKL, Sinkhorn, TrustSplit
from tutelage.errors import ConfigurationError, EmptyBatchError
from tutelage.kernels import Tiling
from tutelage.losses import DISTRIBUTION_LOSSES, TOKEN_LOSSES, TokenLoss
from tutelage.losses.tokens import ClippedSurrogate, SampledKL
from tutelage.models import LanguageModel
from tutelage.policies import Student, TeacherPrefix, TrustRegion
from tutelage.rollout import PairedEngine
from tutelage.targets import TargetRule, Teacher
from tutelage.training import Recipe, check_models_form
from tutelage.training import objective as objective_module
from tutelage.training.forms import chosen_form
from tutelage.types import Batch, Prompt, Rollout
from tutelage.weighting import PositionDecay, Tip, Tropd, Uniform

DIVERGENCE_FORMS = [
    ReverseKL(),
    ReverseKL(top_k=4, rest="renormalised"),
    ReverseKL(top_k=3, rest="truncated"),
    ReverseKL(support="full"),
]


@pytest.fixture(scope="module")
def engine() -> PairedEngine:
    """A student that stops at one id and a teacher that stops at two."""
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1)
    teacher = make_model("llama", vocab_size=28, stop_ids=[7, 8], seed=2)
    return PairedEngine(student, teacher)


@pytest.fixture(scope="module")
def rollouts(engine: PairedEngine) -> list[Rollout]:
    prompts = [Prompt([1, 2, 3]), Prompt([4], teacher_tokens=[9, 10]), Prompt([5, 6, 1, 2]), Prompt([3, 3])]
    made = engine.generate(TrustRegion(kl_radius=0.2), prompts, max_new_tokens=14, num_samples=2)
    assert {rollout.finished for rollout in made} == {True, False}
    return made


def gradients(engine: PairedEngine, rollouts: list[Rollout], **settings):
    module = engine.student.module
    module.zero_grad()
    divergence = settings.pop("divergence")
    losses = divergence if isinstance(divergence, tuple) else (divergence,)
    batch = objective_of(engine.models, *losses, **settings).backward(rated(rollouts))
    return batch, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("divergence", DIVERGENCE_FORMS, ids=str)
def test_loss_and_gradient_against_the_naive_form(engine, rollouts, divergence) -> None:
    """One mean over all response tokens - the stop token included, prompt tokens not - from plain, whole forwards."""
    batch, found = gradients(engine, rollouts, divergence=divergence)
    module = engine.student.module
    module.zero_grad()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for rollout in rollouts:
        log = []
        for model, prompt in ((engine.student, rollout.prompt_tokens), (engine.teacher, rollout.tokens_for_teacher)):
            tokens = torch.tensor([[*prompt, *rollout.response_tokens]])
            logits = model.module(input_ids=tokens).logits[0, len(prompt) - 1 : -1]
            log.append(engine.vocabulary.shared_logits(logits).log_softmax(-1))
        p, q = log[0], log[1].detach()
        if divergence.support == "student_top_k":
            ids = p.detach().topk(divergence.top_k).indices
            rest = [1 - x.exp().gather(1, ids).sum(1, keepdim=True) for x in (p, q)]
            p, q = p.gather(1, ids), q.gather(1, ids)
            if divergence.rest == "renormalised":
                p, q = p.log_softmax(-1), q.log_softmax(-1)
            elif divergence.rest == "tail":
                p, q = torch.cat([p, rest[0].log()], 1), torch.cat([q, rest[1].log()], 1)
        possible = (p.detach() > float("-inf")).all(0)  # the id that was merged into the stop event has no mass
        p, q = p[:, possible], q[:, possible]
        terms = p.exp() * (p - q)
        total, count = total + terms.sum(), count + len(rollout)
    (total / count).backward()
    assert batch.num_tokens == count
    assert batch.loss == pytest.approx(float(total.detach() / count), abs=1e-9)
    for name, parameter in module.named_parameters():
        # The module's norms round to float32 even here, so another order of work shows in the eighth digit.
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=2e-8)


def test_sampled_tokens_against_the_naive_form(engine, rollouts) -> None:
    """Minus the mean log-probability of all response tokens, the stop token included, and its gradient."""
    batch, found = gradients(engine, rollouts, divergence=SampledNLL())
    module = engine.student.module
    module.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for rollout in rollouts:
        tokens = torch.tensor([[*rollout.prompt_tokens, *rollout.response_tokens]])
        logits = module(input_ids=tokens).logits[0, len(rollout.prompt_tokens) - 1 : -1]
        logprobs = engine.vocabulary.shared_logits(logits).log_softmax(-1)
        total = total - logprobs.gather(1, torch.tensor(rollout.response_tokens)[:, None]).sum()
    (total / batch.num_tokens).backward()
    assert batch.loss == pytest.approx(float(total.detach() / batch.num_tokens), abs=1e-9)
    assert batch.logprob_mismatch < 1e-9
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("divergence", [*DIVERGENCE_FORMS[:2], SampledNLL()], ids=str)
def test_one_batch_of_eight_equals_eight_of_one(engine, rollouts, divergence) -> None:
    whole, whole_gradient = gradients(engine, rollouts, divergence=divergence, micro_batch_tokens=10_000)
    for settings in ({"micro_batch_tokens": 1}, {"micro_batch_tokens": 40}, {"chunk_tokens": 3}):
        cut, cut_gradient = gradients(engine, rollouts, divergence=divergence, **settings)
        assert cut.loss == pytest.approx(whole.loss, abs=1e-6)
        for name, gradient in whole_gradient.items():
            torch.testing.assert_close(cut_gradient[name], gradient, rtol=1e-6, atol=2e-8)


def test_two_processes_share_one_denominator(engine, rollouts) -> None:
    """Each process sees the batch and adds the gradient of its own part of it: together, the whole gradient."""
    whole, whole_gradient = gradients(engine, rollouts, divergence=ReverseKL())
    summed: dict[str, torch.Tensor] = {}
    losses = []
    for own in (range(3), range(3, len(rollouts))):
        engine.student.module.zero_grad()
        objective = objective_of(engine.models, ReverseKL())
        losses.append(objective.backward(Batch(rollouts, own=own)).loss)
        for name, parameter in engine.student.module.named_parameters():
            summed[name] = summed.get(name, 0) + parameter.grad
    assert sum(losses) == pytest.approx(whole.loss, abs=1e-12)
    for name, gradient in whole_gradient.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-6, atol=2e-8)


def test_rollout_and_update_see_the_same_student(engine, rollouts) -> None:
    batch, _ = gradients(engine, rollouts, divergence=ReverseKL())
    assert batch.logprob_mismatch < 1e-9


def test_an_empty_batch_is_an_error_and_not_nan(engine) -> None:
    empty = rollout_of([1], [], torch.zeros(0), torch.zeros(0))
    for batch in ([], [empty]):
        with pytest.raises(EmptyBatchError, match="no response token"):
            gradients(engine, batch, divergence=ReverseKL())


def test_a_full_support_without_a_teacher_is_refused(engine) -> None:
    student_only = PairedEngine(engine.student, vocabulary=engine.vocabulary)
    made = student_only.generate(Student(), [[1]], max_new_tokens=3)
    objective = objective_of(student_only.models, ReverseKL(support="full"))
    with pytest.raises(ConfigurationError, match="no teacher is loaded"):
        objective.backward(Batch(made))


def test_a_loss_over_all_tokens_reads_with_the_teacher_once(engine, monkeypatch) -> None:
    """What the scoring kept gives the loss and gradient that a second reading gives."""
    made = engine.generate(Student(), [Prompt([1, 2, 3]), Prompt([4], teacher_tokens=[9, 10])], max_new_tokens=8)
    divergence = ReverseKL(support="full")
    asked_twice = gradients(engine, engine.score(made), divergence=divergence)
    scored = engine.score(made, keep_hidden=True)
    reads = []
    monkeypatch.setattr(engine.teacher, "hidden_packed", lambda *arguments: reads.append(arguments))
    kept = gradients(engine, scored, divergence=divergence)
    assert not reads
    assert kept[0].loss == pytest.approx(asked_twice[0].loss, rel=1e-6)
    for name, gradient in asked_twice[1].items():
        torch.testing.assert_close(kept[1][name], gradient)


# --- every divergence, every weighting -------------------------------------------------------------------------------

MEMBERS = [
    *(member() for member in {**DISTRIBUTION_LOSSES, **TOKEN_LOSSES}.values()),
    ClippedSurrogate(ratio="sequence", normaliser="sequence_mean", correction="sequence_truncate"),
    SampledKL(to="target", estimator="k3", normaliser="constant", normaliser_tokens=14),
    Sinkhorn(transport_weight=1.0, group_tokens=4),
    SampledReverseKL(discount=0.9, baseline="leave_one_out"),
    SampledReverseKL(baseline="expected"),
    TrustSplit(acceptance="expected", outliers="scalar"),
    ResidualReverseKL(support="student_top_k", tail="sampled"),
]


@pytest.mark.sweeps
@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
def test_no_member_depends_on_how_the_batch_is_cut(engine, rollouts, divergence) -> None:
    whole, whole_gradient = gradients(engine, rollouts, divergence=divergence, weighting=Tip(share=0.7))
    cut, cut_gradient = gradients(
        engine, rollouts, divergence=divergence, weighting=Tip(share=0.7), micro_batch_tokens=30, chunk_tokens=3
    )
    assert cut.loss == pytest.approx(whole.loss, abs=1e-6) and whole.loss != 0
    for name, gradient in whole_gradient.items():
        torch.testing.assert_close(cut_gradient[name], gradient, rtol=1e-5, atol=5e-8)


@pytest.mark.parametrize("form", ["chunked", "tiled", "recomputed"])
def test_a_sequence_ratio_is_that_of_the_student_now_over_the_whole_answer(engine, rollouts, form, monkeypatch) -> None:
    """Records say that each token was less probable by a number of its own; answers are cut into chunks of 3 tokens."""
    monkeypatch.setattr(objective_module, "tokens_per_chunk", lambda vocabulary: 3)
    drifts = [torch.linspace(-0.01, 0.03 + place, len(rollout)) / 50 for place, rollout in enumerate(rollouts)]
    old = [
        rollout.with_tokenwise({"student.logprobs_T": rollout.student_logprobs - drift_T})
        for rollout, drift_T in zip(rollouts, drifts, strict=True)
    ]
    plain = GroupReward("none", "none")
    loss = ClippedSurrogate(plain, epsilon_high=9.0, ratio="sequence", correction="none", normaliser="sequence_mean")
    found, _ = gradients(engine, old, divergence=loss, form=form)
    rewards = rated(rollouts).rewards["reward"].tolist()
    ratios = [float(drift_T.mean().exp()) for drift_T in drifts]
    expected = -sum(ratio * reward for ratio, reward in zip(ratios, rewards, strict=True)) / len(rollouts)
    assert found.loss == pytest.approx(expected, rel=1e-5)


FORMS = ("chunked", "tiled", "recomputed")
TILED_MEMBERS = [
    replace(member, support=support, top_k=4)
    for member in MEMBERS
    for support in ("student_top_k", "full")
    if hasattr(member, "support")
    and not isinstance(member, Sinkhorn)
    and not (support == "full" and isinstance(member, TokenLoss))
] + [member for member in MEMBERS if not hasattr(member, "support")]


@pytest.mark.sweeps
@pytest.mark.parametrize("tiling", [Tiling(7, 10), Tiling(7, 10, keeps=False)], ids=str)
@pytest.mark.parametrize("divergence", TILED_MEMBERS, ids=repr)
def test_tiles_give_what_chunks_give(engine, rollouts, divergence, tiling, monkeypatch) -> None:
    def fitting(view, hidden_ND, entry_bytes, *, keeps, whole_rows=False):
        return Tiling(tiling.tokens, view.size if whole_rows else tiling.vocabulary, keeps)

    monkeypatch.setattr(Tiling, "fitting", fitting)
    settings = {"divergence": divergence, "weighting": Tip(share=0.7), "micro_batch_tokens": 60}
    expected, expected_gradient = gradients(engine, rollouts, form="chunked", **settings)
    if not tiling.keeps and getattr(divergence, "support", "") == "full" and not divergence.is_sum_over_events:
        with pytest.raises(ConfigurationError, match=r"runtime\.loss is 'recomputed', but .* is not a sum over events"):
            gradients(engine, rollouts, form="recomputed", **settings)
        return
    found, gradient = gradients(engine, rollouts, form="tiled" if tiling.keeps else "recomputed", **settings)
    assert found.loss == pytest.approx(expected.loss, rel=1e-7)
    assert found.logprob_mismatch == pytest.approx(expected.logprob_mismatch, abs=1e-9)
    for name, other in expected_gradient.items():
        torch.testing.assert_close(gradient[name], other, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize(
    ("divergence", "reason"),
    [
        (Sinkhorn(group_tokens=4), "the divergence Sinkhorn compares several tokens with each other"),
        (ReverseKL(support="teacher_top_k"), "divergence.support is 'teacher_top_k', which looks for tokens"),
        (
            SampledReverseKL(support="full", baseline="expected"),
            "the divergence SampledReverseKL is taken on sampled tokens",
        ),
    ],
    ids=repr,
)
def test_what_has_no_tiles_is_chunked_or_refused(engine, rollouts, divergence, reason, monkeypatch) -> None:
    with pytest.raises(ConfigurationError, match=f"runtime.loss is 'tiled', but {reason}.*Use runtime.loss = 'auto'"):
        gradients(engine, rollouts, divergence=divergence, form="tiled")
    monkeypatch.setattr(objective_module, "tokens_per_chunk", lambda vocabulary: 3)
    assert gradients(engine, rollouts, divergence=divergence)[0].loss == pytest.approx(
        gradients(engine, rollouts, divergence=divergence, form="chunked")[0].loss
    )
    with pytest.raises(ConfigurationError, match="runtime.loss is 'fused'; expected one of auto, chunked"):
        gradients(engine, rollouts, divergence=divergence, form="fused")


def test_a_teacher_elsewhere_has_no_tiles(engine) -> None:
    """Its head would have to be where the student's is."""
    recipe, teacher = Recipe(Student(), Teacher(), (ReverseKL(support="full"),)), LanguageModel(make_model().to("meta"))
    words = "runtime.loss is 'tiled', but the teacher is on meta and the student on cpu"
    with pytest.raises(ConfigurationError, match=words):
        check_models_form("tiled", recipe, engine.student, [teacher])
    assert chosen_form("auto", recipe, engine.student, [teacher], is_one_chunk=False) == "chunked"
    assert chosen_form("auto", recipe, engine.student, [engine.student], is_one_chunk=False) == "tiled"


def test_tiles_are_taken_where_one_chunk_is_not_enough(engine, rollouts, monkeypatch) -> None:
    asked = []
    tiled = objective_module.tiled
    monkeypatch.setattr(
        objective_module, "tiled", lambda *given, keeps: asked.append(None) or tiled(*given, keeps=keeps)
    )
    for tokens, expected in ((1000, 0), (len(rollouts[0].response_tokens) - 1, 1)):
        monkeypatch.setattr(objective_module, "tokens_per_chunk", lambda vocabulary, tokens=tokens: tokens)
        gradients(engine, rollouts[:1], divergence=ReverseKL())
        assert len(asked) == expected


def test_an_adapter_on_the_backbone_leaves_the_head_alone(engine, rollouts) -> None:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1, tie=False)
    untied = PairedEngine(student, engine.teacher)
    untied.student.module.lm_head.requires_grad_(False)
    found = [gradients(untied, rollouts, divergence=ReverseKL(support="full"), form=form)[1] for form in FORMS]
    assert all("lm_head.weight" not in each and each.keys() == found[0].keys() for each in found)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=2e-8)
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-6, atol=2e-8)


@pytest.mark.parametrize("support", ["student_top_k", "full"])
@pytest.mark.parametrize("tie", [True, False])
def test_under_autocast_tiles_multiply_in_bfloat16_and_learn_in_float32(engine, rollouts, support, tie) -> None:
    student = make_model("qwen3", vocab_size=24, stop_ids=7, seed=1, tie=tie)
    pair = PairedEngine(student.float(), engine.teacher)
    divergence = ReverseKL(support=support, top_k=4)
    exact = gradients(pair, rollouts, divergence=divergence, form="tiled")[1]
    pair.student.autocast = torch.bfloat16
    losses, found = zip(*(gradients(pair, rollouts, divergence=divergence, form=form) for form in FORMS), strict=True)
    for loss, each in zip(losses[1:], found[1:], strict=True):
        assert loss.loss == pytest.approx(losses[0].loss, rel=2e-2)
        for name, gradient in each.items():
            assert gradient.dtype == torch.float32
            assert (gradient - found[0][name]).norm() <= 3e-2 * found[0][name].norm(), name
    head = "model.embed_tokens.weight" if tie else "lm_head.weight"
    assert not torch.allclose(found[1][head], exact[head], rtol=1e-4), "nothing was rounded"


@pytest.mark.parametrize(
    "weighting", [Tip(share=0.3), PositionDecay(half_life=3), Tropd(), Tropd("expected")], ids=repr
)
def test_a_weighted_mean_is_divided_by_its_weights(engine, rollouts, weighting) -> None:
    """The same as the uniform means of single tokens, weighed by hand."""
    seen: list[torch.Tensor] = []

    class Seen(type(weighting)):
        def __call__(self, records, uniforms_N=None):
            seen.append(super().__call__(records, uniforms_N))
            return seen[-1]

    rollouts = rollouts[:4]  # every token costs an update of its own
    found, _ = gradients(engine, rollouts, divergence=ReverseKL(), weighting=Seen(**vars(weighting)), step=3)

    def loss_of(token: int) -> float:
        class One(Uniform):
            def __call__(self, records, uniforms_N=None):
                return torch.nn.functional.one_hot(torch.tensor(token), records.num_tokens).float()

        return gradients(engine, rollouts, divergence=ReverseKL(), weighting=One())[0].loss

    weights = seen[0].tolist()
    expected = sum(weight * loss_of(token) for token, weight in enumerate(weights) if weight) / sum(weights)
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.num_tokens == len(weights) and found.weight_mean == pytest.approx(sum(weights) / len(weights))


def test_weights_that_are_all_alike_change_no_bit(engine, rollouts) -> None:
    class Twos(Uniform):
        def __call__(self, records, uniforms_N=None):
            return torch.full((records.num_tokens,), 2.0)

    batch, expected = gradients(engine, rollouts[:1], divergence=ReverseKL())
    twice, found = gradients(engine, rollouts[:1], divergence=ReverseKL(), weighting=Twos())
    assert twice.loss == batch.loss and twice.weight_mean == 2 * batch.weight_mean
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_draws_belong_to_tokens(engine, rollouts) -> None:
    losses = [
        gradients(engine, batch, divergence=ReverseKL(), weighting=Tropd(), seed=seed, step=step)[0].loss
        for batch, seed, step in (
            (rollouts, 1, 2),
            (list(reversed(rollouts)), 1, 2),
            (rollouts, 2, 2),
            (rollouts, 1, 3),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] != losses[2] and losses[0] != losses[3]


def test_nothing_that_counts_is_a_loss_of_zero(engine, rollouts) -> None:
    class Nothing(Uniform):
        def __call__(self, records, uniforms_N=None):
            return torch.zeros(records.num_tokens)

    batch, found = gradients(engine, rollouts, divergence=ReverseKL(), weighting=Nothing())
    assert batch.loss == 0 and all((gradient == 0).all() for gradient in found.values())


def test_the_sampled_loss_is_what_its_formula_says(engine, rollouts) -> None:
    batch, found = gradients(engine, rollouts, divergence=SampledReverseKL())
    module = engine.student.module
    module.zero_grad()
    total, value = torch.zeros(()).double(), 0.0
    for rollout in rollouts:
        tokens = torch.tensor([[*rollout.prompt_tokens, *rollout.response_tokens]])
        logits = module(input_ids=tokens).logits[0, len(rollout.prompt_tokens) - 1 : -1]
        now = engine.vocabulary.shared_logits(logits).log_softmax(-1)
        now = now.gather(1, torch.tensor(rollout.response_tokens)[:, None])[:, 0]
        rewards = rollout.teacher_logprobs - rollout.student_logprobs
        ratio = (rollout.student_logprobs - rollout.behaviour_logprobs).exp().clamp(max=5.0)
        total = total - (ratio * rewards * now).sum()
        value -= float((ratio * rewards).sum())
    (total / batch.num_tokens).backward()
    assert batch.loss == pytest.approx(value / batch.num_tokens, rel=1e-9)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_sampled_tokens_need_a_target_that_acts_on_them() -> None:
    class Whole(TargetRule):
        def __call__(self, student_logprobs, teacher_logprobs):
            return (student_logprobs + teacher_logprobs).log_softmax(-1)

    Recipe(Student(), Whole(), (ReverseKL(),))
    with pytest.raises(ConfigurationError, match="the target Whole is known as a whole distribution only"):
        Recipe(Student(), Whole(), (SampledReverseKL(),))


def test_the_teachers_prefix_is_imitated_with_a_thousandth_of_the_weight(engine: PairedEngine) -> None:
    """Where the answers are all prefix, TrOPD's gradient is that of fine-tuning on them, times 0.001."""
    made = engine.generate(TeacherPrefix(99), [[1, 2, 3], [4]], max_new_tokens=8, num_samples=2)
    trust, weak = gradients(engine, made, divergence=TrustSplit())
    _, full = gradients(engine, made, divergence=SampledNLL())
    for name, gradient in weak.items():
        torch.testing.assert_close(gradient, 0.001 * full[name], rtol=1e-5, atol=1e-9)
    rewards = torch.cat([rollout.teacher_logprobs - rollout.student_logprobs for rollout in made])
    assert trust.loss == pytest.approx(0.001 * rewards.mean().item(), rel=1e-5)
    # Behind the prefix the split goes on.
    mixed = engine.generate(TeacherPrefix(3), [[1, 2, 3], [4]], max_new_tokens=8, num_samples=2)
    halves = [TrustSplit(prefix_weight=weight) for weight in (0.0, 1.0)]
    without, with_prefix = (gradients(engine, mixed, divergence=half)[0].loss for half in halves)
    prefix = torch.cat([(r.teacher_logprobs - r.student_logprobs)[:3] for r in mixed]).sum().item()
    assert with_prefix - without == pytest.approx(prefix / sum(map(len, mixed)), rel=1e-4)
