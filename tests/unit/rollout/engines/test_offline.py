"""Which answers a step gets depends on (seed, step, prompt) only."""

from __future__ import annotations

import pytest

from tests.support.scored_answers import OTHER, PROMPT
from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError, DataError
from tutelage.policies import Offline
from tutelage.rollout import Engines, OfflineEngine, PairedEngine, Request, ScoreCache
from tutelage.types import Prompt


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
