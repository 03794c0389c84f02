from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from tests.support.rollouts import rollout_of
from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError, DataError, NonFiniteError, VocabularyMismatchError
from tutelage.policies import Student, Teacher, TrustRegion
from tutelage.rollout import Limits, LocalScorer, PairedEngine
from tutelage.types import Prompt

FIELDS = [
    "teacher.logprobs_T",
    "teacher.entropy_T",
    "teacher.support_logprobs_TK",
    "teacher.tail_logprobs_T",
    "support_overlap",
    "support_is_shared",
    "student.logprobs_T",
    "student.entropy_T",
    "support_mass",
]


@pytest.fixture(scope="module")
def engine() -> PairedEngine:
    student = make_model("qwen3", vocab_size=20, stop_ids=7, seed=1)
    teacher = make_model("gemma3", vocab_size=24, stop_ids=[7, 8], seed=2)
    return PairedEngine(student, teacher, support_size=4)


def test_scoring_afterwards_equals_scoring_while_sampling(engine: PairedEngine) -> None:
    """The loss must not know whether the teacher was in the loop; here also with a teacher that reads other prompts."""
    prompts = [Prompt([1, 2, 3], teacher_tokens=[9, 9, 1, 2, 3]), Prompt([4])]
    sampled = engine.generate(TrustRegion(kl_radius=0.1), prompts, max_new_tokens=20, num_samples=5)
    for max_tokens in (1, 64, 4096):
        scored = LocalScorer(engine.models.teachers, engine.vocabulary, max_tokens).score(sampled)
        for before, after in zip(sampled, scored, strict=True):
            assert after.response_tokens == before.response_tokens
            for name in FIELDS:
                torch.testing.assert_close(after.tokenwise(name), before.tokenwise(name), rtol=1e-6, atol=1e-8)


def test_the_student_policy_never_calls_the_teacher() -> None:
    student, teacher = make_model("qwen3", vocab_size=20, seed=1), make_model("qwen3", vocab_size=20, seed=2)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was called")

    teacher.register_forward_pre_hook(fail)
    teacher.model.register_forward_pre_hook(fail)
    engine = PairedEngine(student, teacher)
    rollouts = engine.generate(TrustRegion(kl_radius=0.0).at(0), [[1, 2]], max_new_tokens=5)
    assert rollouts[0].teacher_logprobs is None and not rollouts[0].is_scored
    with pytest.raises(AssertionError, match="the teacher was called"):
        engine.generate(Teacher(), [[1, 2]], max_new_tokens=5)


def watch_reading(model: Any) -> list[tuple[int, ...]]:
    """Shapes of the token ids that the model reads from now on."""
    shapes: list[tuple[int, ...]] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape))
    )
    return shapes


def test_samples_share_one_prefill() -> None:
    """All but the last token of each prompt is read once; then every sample reads one token at a time."""
    model = make_model("qwen3", vocab_size=20, seed=1)
    shapes = watch_reading(model)
    PairedEngine(model).generate(Student(), [[1, 2, 3], [4]], max_new_tokens=2, num_samples=4)
    assert math.prod(shapes[0]) == 2
    assert shapes[1:] == [(8, 1), (8, 1)]


def test_finished_rows_leave_the_batch() -> None:
    model = make_model("qwen3", vocab_size=8, stop_ids=3, seed=1)
    shapes = watch_reading(model)
    rollouts = PairedEngine(model).generate(Student(), [[1]], max_new_tokens=40, num_samples=64)
    rows = [shape[0] for shape in shapes if shape[-1:] == (1,)]
    alive = [sum(len(rollout) > done for rollout in rollouts) for done in range(max(map(len, rollouts)))]
    assert rows[0] == 64
    for decoded, still_alive in zip(rows, alive, strict=True):
        assert still_alive <= decoded <= still_alive / (1 - 0.125) + 1


def test_waiting_prompts_take_over_finished_rows() -> None:
    """Ragged answers through 8 slots: hardly a slot is idle until the queue is empty."""
    model = make_model("qwen3", vocab_size=8, stop_ids=3, seed=1)
    shapes = watch_reading(model)
    rollouts = PairedEngine(model, limits=Limits(max_rows=8)).generate(
        Student(), [[1, 2], [4]], max_new_tokens=40, num_samples=100
    )
    rows = [shape[0] for shape in shapes if len(shape) == 2 and shape[1] == 1 and shape[0] > 1]
    assert max(rows) == 8
    longest = max(map(len, rollouts))
    assert sum(rows) <= sum(map(len, rollouts)) + 8 * longest
    assert [(r.prompt_index, r.sample_index) for r in rollouts] == list(itertools.product(range(2), range(100)))


def test_rows_are_planned_from_the_byte_budget() -> None:
    student, teacher = make_model("qwen3", vocab_size=20), make_model("qwen3", vocab_size=20, seed=1)
    prompts = [Prompt([1, 2, 3], teacher_tokens=[1] * 10)]
    slot_bytes = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, head size, bytes of a float64
    # Both models; prompt, answer, and what a draft of 16 reads beyond the answer's last token.
    answer_bytes = 2 * (10 + 20 + 15) * slot_bytes
    engine = PairedEngine(student, teacher, limits=Limits(cache_bytes=3 * answer_bytes))
    assert engine.rows_that_fit(prompts, 20, with_teacher=True) == 3
    assert engine.rows_that_fit(prompts, 20, with_teacher=False) == 9, "one model, no draft: 270 slots of 30"
    for draft_length, num_rows in ((1, 4), (10, 3), (19, 2), (200, 2)):  # no draft is longer than an answer
        fixed = PairedEngine(student, teacher, limits=Limits(cache_bytes=3 * answer_bytes), draft_length=draft_length)
        assert fixed.rows_that_fit(prompts, 20, with_teacher=True) == num_rows
    assert PairedEngine(student, teacher).rows_that_fit(prompts, 20, with_teacher=True) == 256
    shapes = watch_reading(student)
    engine.generate(TrustRegion(0.1), prompts, max_new_tokens=20, num_samples=10)
    assert max(shape[0] for shape in shapes if shape[-1:] == (1,)) <= 3
    small = PairedEngine(student, teacher, limits=Limits(cache_bytes=answer_bytes - 1))
    with pytest.raises(ConfigurationError, match=r"one answer of 20 tokens to a prompt of 10 needs .* GiB of cache"):
        small.generate(TrustRegion(0.1), prompts, max_new_tokens=20)


def test_length_one_prompts_and_length_one_answers(engine: PairedEngine) -> None:
    rollouts = engine.generate(TrustRegion(kl_radius=0.5), [[1], [2]], max_new_tokens=1, num_samples=2)
    assert [len(rollout) for rollout in rollouts] == [1, 1, 1, 1]
    assert all(len(rollout.tokenwise(name)) == 1 for rollout in rollouts for name in FIELDS)


def test_a_model_without_stop_ids_runs_to_the_limit() -> None:
    rollouts = PairedEngine(make_model("llama", vocab_size=9)).generate(
        Student(), [[1]], max_new_tokens=70, num_samples=2
    )
    assert [(len(r), r.finished) for r in rollouts] == [(70, False)] * 2


def test_refusals(engine: PairedEngine) -> None:
    student_only = PairedEngine(make_model("qwen3", vocab_size=20))
    with pytest.raises(ConfigurationError, match="asks the teacher"):
        student_only.generate(Teacher(), [[1]], max_new_tokens=4)
    with pytest.raises(ConfigurationError, match="scoring needs a teacher"):
        student_only.score([])
    with pytest.raises(ConfigurationError, match="max_new_tokens is 0"):
        student_only.generate(Student(), [[1]], max_new_tokens=0)
    with pytest.raises(ConfigurationError, match=r"rollout.max_rows is 0"):
        PairedEngine(make_model("qwen3"), limits=Limits(max_rows=0))
    with pytest.raises(DataError, match="prompt 1 is empty"):
        student_only.generate(Student(), [[1], []], max_new_tokens=4)
    with pytest.raises(DataError, match="512 tokens"):
        student_only.generate(Student(), [[1] * 500], max_new_tokens=13)
    with pytest.raises(DataError, match=r"prompt 0 has token 20, but .* has embeddings for 20 tokens only"):
        student_only.generate(Student(), [[1, 20]], max_new_tokens=4)
    unscored = rollout_of([1], [2], torch.zeros(1), torch.zeros(1))
    with pytest.raises(DataError, match="without the student's support"):
        engine.score([unscored])


def test_nan_logits_are_named_and_not_sampled() -> None:
    model = make_model("qwen3", vocab_size=20)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        PairedEngine(model).generate(Student(), [[1]], max_new_tokens=4)


def test_mismatched_tokenizers_are_refused(tmp_path) -> None:
    from tests.support.tiny_run import make_tokenizer
    from tutelage.models import LanguageModel

    student = LanguageModel(make_model("qwen3", vocab_size=300), make_tokenizer())
    teacher = LanguageModel(make_model("qwen3", vocab_size=300), make_tokenizer(extra=("zz",)))
    with pytest.raises(VocabularyMismatchError, match=r"id 256: student '<\|endoftext\|>', teacher 'zz'"):
        PairedEngine(student, teacher)
