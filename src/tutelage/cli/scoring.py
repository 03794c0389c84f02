"""Let the teacher score existing answers, and write its scores to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tutelage.config import RunAssembly, RunConfig, check_writable
from tutelage.config.answers import read_answers
from tutelage.config.clock import date_of_scores, dated
from tutelage.config.fingerprints import differences
from tutelage.errors import DataError, OutputExistsError
from tutelage.files import sha256_of
from tutelage.locks import hold, release
from tutelage.rollout import ScoreCache, TopScorer
from tutelage.types import Rollout

__all__ = ["write_scores"]


def write_scores(
    config: RunConfig,
    answers: Path,
    output: Path,
    *,
    answers_per_shard: int,
    resume: bool,
    on_message: Callable[[str], None],
) -> int:
    """Score every answer of a file with the run's teacher; the student's weights are not needed.

    Args:
      resume: continue in `output`: whole shards stay, the others are written (again).
      on_message: gets a line for each shard.
    Returns:
      number of answers in the cache.
    Raises:
      OutputExistsError: `output` exists and `resume` is False.
      DataError: answers that cannot be used, or `resume` in a folder that was begun with something else.
    """
    if output.exists() and not resume:
        raise OutputExistsError(
            f"the output folder {output} already exists; nothing is overwritten. Choose another, or continue with "
            "--resume."
        )
    check_writable(output)
    cache = ScoreCache(output)
    rollouts, run = read_answers(answers, dated(config, date_of_scores(output)) if resume else config)
    manifest = {
        "key": run.score_key(),
        "top_k": min(config.rollout.support_size, run.vocabulary.size),
        "num_answers": len(rollouts),
        "answers_per_shard": answers_per_shard,
        "answers": {"file": answers.name, "sha256": sha256_of(answers)},
    }
    if resume:
        changed = differences(manifest, {name: cache.manifest.get(name) for name in manifest})
        if changed:
            raise DataError(
                f"--resume: {output} was begun with something else ({'; '.join(changed)}). Undo the change, or score "
                "into a new folder."
            )
    else:
        cache.create(manifest)
    hold(output, "Wait for it to end, or score into a new folder.")
    try:
        _write_missing(run, cache, rollouts, on_message)
    finally:
        release(output)
    return len(rollouts)


def _write_missing(
    run: RunAssembly, cache: ScoreCache, rollouts: list[Rollout], on_message: Callable[[str], None]
) -> None:
    """Write the shards that are missing or damaged."""
    answers_per_shard, settings = int(cache.manifest["answers_per_shard"]), run.config.rollout
    for shard, problem in cache.damages().items():
        if cache.path(shard).exists():
            on_message(f"{cache.path(shard).name} {problem}; it is written again")
        first = shard * answers_per_shard
        scorer = TopScorer(run.teachers, run.vocabulary, settings.score_tokens, settings.support_size)
        cache.write(shard, scorer.score(rollouts[first : first + answers_per_shard]))
        on_message(f"shard {shard + 1} of {cache.num_shards} written")
