"""What was written is what is read, and which answers a step gets depends on (seed, step, prompt) only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.rollouts import rollout_of
from tests.support.tiny_models import make_model
from tutelage.distributions import normalise, tail_logprobs
from tutelage.divergences import TeacherTopK
from tutelage.errors import ConfigurationError, DataError
from tutelage.models import align, as_language_model
from tutelage.policies import Offline
from tutelage.rollout import Engines, OfflineEngine, PairedEngine, Request, ScoreCache, TopScorer
from tutelage.types import DenseTarget, Prompt, Rollout, SparseTarget

PROMPT, OTHER = Prompt([1, 2, 3], teacher_tokens=[9, 1, 2, 3]), Prompt([4])
FIELDS = (
    "teacher.logprobs_T",
    "teacher.entropy_T",
    "teacher.top.support_ids",
    "teacher.top.logprobs",
    "teacher.top.tail_logprobs",
)


def answers() -> list[Rollout]:
    """Five to the first prompt and two to the second, as a teacher in float64 reads them."""
    made = []
    for prompt, count in ((PROMPT, 5), (OTHER, 2)):
        for number in range(count):
            tokens = [5 + number, 6, 7][: 1 + number % 3]
            unknown = torch.full((len(tokens),), torch.nan)
            reads = None if prompt.teacher_tokens is None else list(prompt.teacher_tokens)
            made.append(
                rollout_of(
                    prompt.student_tokens, tokens, unknown, unknown, finished=number == 1, teacher_prompt_tokens=reads
                )
            )
    return made


@pytest.fixture(scope="module")
def scored() -> list[Rollout]:
    teacher = as_language_model(make_model("qwen3", vocab_size=20, seed=2), "teacher")
    return TopScorer({None: teacher}, align(teacher), 8, 4).score(answers())


@pytest.fixture
def cache(scored: list[Rollout], tmp_path: Path) -> ScoreCache:
    cache = ScoreCache(tmp_path / "scores")
    cache.create({"num_answers": 7, "answers_per_shard": 3})
    for shard in range(cache.num_shards):
        cache.write(shard, scored[3 * shard : 3 * shard + 3])
    return cache


def test_scores_are_those_of_a_plain_forward(scored: list[Rollout]) -> None:
    model = make_model("qwen3", vocab_size=20, seed=2)
    rollout = scored[2]
    tokens = torch.tensor([[*rollout.tokens_for_teacher, *rollout.response_tokens]])
    logprobs = normalise(model(tokens).logits[0, len(rollout.tokens_for_teacher) - 1 : -1])
    top = logprobs.topk(4)
    assert rollout.teacher.top.support_ids is not None and rollout.support_ids is None
    assert torch.equal(rollout.teacher.top.support_ids.long(), top.indices)
    torch.testing.assert_close(rollout.teacher.top.logprobs, top.values)
    torch.testing.assert_close(rollout.teacher.top.tail_logprobs, tail_logprobs(logprobs, top.indices))
    torch.testing.assert_close(
        rollout.teacher_logprobs, logprobs.gather(-1, torch.tensor(rollout.response_tokens)[:, None])[:, 0]
    )


def test_what_is_read_is_what_was_written(cache: ScoreCache, scored: list[Rollout]) -> None:
    for number, rollout in enumerate(scored):
        read = cache.read(*divmod(number, 3))
        for name in ("prompt_tokens", "teacher_prompt_tokens", "response_tokens", "finished", "teacher_name"):
            assert getattr(read, name) == getattr(rollout, name)
        for name in FIELDS:
            assert torch.equal(read.tokenwise(name), rollout.tokenwise(name)), name
        assert read.is_scored and read.behaviour_logprobs.isnan().all()


def test_a_step_gets_its_answers_whatever_else_is_in_its_batch(cache: ScoreCache) -> None:
    offline = OfflineEngine.of(cache)
    chosen = set()
    for step in range(100):
        both = offline.answer(Offline(), Request([PROMPT, Prompt([4], stream=1)], 4, 2, seed=3, step=step))
        assert [(r.prompt_index, r.sample_index) for r in both] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        alone = offline.answer(Offline(), Request([Prompt([4], stream=1)], 4, 2, seed=3, step=step))
        assert [r.response_tokens for r in alone] == [r.response_tokens for r in both[2:]]
        chosen.add(tuple(tuple(r.response_tokens) for r in both[:2]))
    assert len(chosen) == 10, "every pair of five answers has its turn"
    assert all(first != second for first, second in chosen)


def test_the_engine_gives_them_for_the_policy_that_samples_none(cache: ScoreCache) -> None:
    student = make_model("qwen3", vocab_size=20, seed=1)
    engine = Engines([OfflineEngine.of(cache), PairedEngine(student)])
    (rollout,) = engine.answer(Offline(), Request([OTHER], 4))
    assert rollout.prompt_tokens == [4] and rollout.is_scored
    with pytest.raises(ConfigurationError, match="nothing can be sampled from it"):
        PairedEngine(student).generate(Offline(), [OTHER], max_new_tokens=4)


def test_prompts_without_answers_and_damaged_shards_are_refused(cache: ScoreCache) -> None:
    offline = OfflineEngine.of(cache)
    assert offline.longest == 4 + 3
    offline.check_answered([PROMPT, OTHER], 2)
    with pytest.raises(DataError, match=r"1 of 2 prompts have no answer .* first number 1"):
        offline.check_answered([PROMPT, Prompt([1, 2, 3])], 2)  # the teacher reads something else
    with pytest.raises(DataError, match="samples_per_prompt is 3, .* has 2 answers to prompt number 1"):
        offline.check_answered([PROMPT, OTHER], 3)
    cache.path(2).unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards .* shard-00002\.parquet, which cannot be read"):
        OfflineEngine.of(cache)


@pytest.mark.parametrize("rest", ["tail", "renormalised", "truncated"])
@pytest.mark.parametrize("k", [2, 4])
def test_the_teachers_support_on_a_record_is_that_of_its_logits(k: int, rest: str) -> None:
    student, teacher = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logprobs = normalise(teacher)
    top = logprobs.topk(4)
    record = SparseTarget(top.indices.int(), top.values, tail_logprobs(logprobs, top.indices), whose="teacher")
    support = TeacherTopK(k, rest)
    for found, expected in zip(
        support.events(student, record), support.events(student, DenseTarget(teacher)), strict=True
    ):
        torch.testing.assert_close(found, expected)
    with pytest.raises(ConfigurationError, match="known on a top-k support only"):
        support.events(student, SparseTarget(top.indices, top.values, record.tail_logprobs))
