"""Prompts whose answers teach nothing are replaced by others, and everything stays a function of the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.errors import ConfigurationError
from tutelage.training import Run
from tutelage.training.collect import Stopwatch, collect
from tutelage.types import Batch

RATED = ['reward=[{name = "format", pattern = "(?s).*[a-m].*"}]', "policy=student", "evaluation.sets=[]"]
SIZES = ["rollout.prompts_per_step=6", "rollout.samples_per_prompt=2", "rollout.max_new_tokens=4"]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_file(tmp_path_factory.mktemp("collect"))


def run_of(run_file: Path, *overrides: str) -> Run:
    return build_run(load_config(run_file, [*RATED, *SIZES, *overrides]))


def batch_of(run: Run, step: int = 0, **shared: Any) -> Batch:
    return collect(run.source, step, run.learning.phases[0].recipe_at(step), Stopwatch(), **shared)


def groups_of(batch: Batch) -> list[tuple[int, list[list[int]], bool]]:
    """Of each prompt its number, the tokens of its answers, and whether their rewards differ."""
    found: list[tuple[int, list[list[int]], bool]] = []
    rewards = batch.rewards["reward"].tolist()
    for slot, number in enumerate(batch.prompt_numbers):
        places = [place for place, made in enumerate(batch.rollouts) if made.prompt_index == slot]
        tokens = [batch.rollouts[place].response_tokens for place in places]
        found.append((number, tokens, len({rewards[place] for place in places}) > 1))
    return found


def test_only_prompts_without_spread_are_replaced_and_only_by_ones_with_spread(run_file: Path) -> None:
    plain, redrawn = (run_of(run_file, f"rollout.redraws={times}") for times in (0, 3))
    before, batch = groups_of(batch_of(plain)), batch_of(redrawn)
    after = groups_of(batch)
    kept = [old == new for old, new in zip(before, after, strict=True)]
    assert all(is_kept for (_, _, has_spread), is_kept in zip(before, kept, strict=True) if has_spread)
    assert all(has_spread for (_, _, has_spread), is_kept in zip(after, kept, strict=True) if not is_kept)
    assert sum(has_spread for *_, has_spread in after) > sum(has_spread for *_, has_spread in before) > 0
    assert batch.num_redrawn >= kept.count(False) > 0 and batch_of(plain).num_redrawn == 0
    assert len({number for number, *_ in after}) == 6, "no prompt is there twice"
    for made in batch.rollouts:
        prompt = redrawn.source.prompts[batch.prompt_numbers[made.prompt_index]]
        assert made.prompt_tokens == list(prompt.student_tokens)
    assert [(made.prompt_index, made.sample_index) for made in batch.rollouts] == [
        (p, s) for p in range(6) for s in (0, 1)
    ]


def test_it_is_a_function_of_the_step_and_may_be_shared(run_file: Path) -> None:
    def in_two(count: int, work: Callable[[slice], list[Any]]) -> list[Any]:
        return work(slice(0, count // 2)) + work(slice(count // 2, count))

    run = run_of(run_file, "rollout.redraws=2")
    alone, again, shared = batch_of(run, 1), batch_of(run, 1), batch_of(run, 1, map_shards=in_two)
    assert groups_of(alone) == groups_of(again) == groups_of(shared) != groups_of(batch_of(run, 2))
    assert alone.num_redrawn == shared.num_redrawn


def test_a_combination_never_takes_answers_to_two_prompts_for_one_group(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(run_file, "rollout.redraws=3", 'reward_combination={name = "normalised_sum"}')
    rating = run.source.rating
    assert rating is not None
    entries, asked = rating.entries, list[Sequence[int]]()

    def spied(found: Any, groups: Sequence[int], step: int) -> Any:
        asked.append(groups)
        return entries(found, groups, step)

    monkeypatch.setattr(rating, "entries", spied)
    assert batch_of(run).num_redrawn > 6, "prompts were drawn more than once"
    assert all(set(Counter(groups).values()) == {2} for groups in asked), asked


def test_where_no_prompt_is_left_what_was_drawn_stays(run_file: Path) -> None:
    few = run_of(run_file, "rollout.redraws=9", "data.limit=6")
    assert sorted(batch_of(few).prompt_numbers) == list(range(6)) and batch_of(few).num_redrawn == 0


def test_redraws_without_anything_that_could_be_the_same_are_refused(run_file: Path) -> None:
    for overrides, message in {
        ("rollout.redraws=1", "reward=[]"): r"rollout\.redraws is 1, but answers have no \[\[reward\]\]",
        ("rollout.redraws=1", "rollout.samples_per_prompt=1"): r"samples_per_prompt is 1, and one answer alone has no",
        ("rollout.redraws=-1",): r"rollout\.redraws is -1; it must be at least 0",
    }.items():
        with pytest.raises(ConfigurationError, match=message):
            run_of(run_file, *overrides)
