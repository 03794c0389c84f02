"""Let the teacher score existing answers, and write its scores to a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.api.arguments import Overrides, RunFile, check_numbers, threads
from tutelage.config import RunAssembly, RunConfig, check_writable, load_config
from tutelage.config.answers import read_answers
from tutelage.config.clock import date_of_scores, dated
from tutelage.config.fingerprints import differences
from tutelage.errors import ConfigurationError, DataError, OutputExistsError
from tutelage.files import sha256_of
from tutelage.locks import hold, release
from tutelage.rollout import ScoreCache, TopScorer
from tutelage.types import Rollout

__all__ = ["Scored", "score"]


@dataclass(frozen=True)
class Scored:
    """A folder of a teacher's scores: `data.scores` of runs that learn from them.

    Fields:
      folder: where they are.
      num_answers: that are scored there.
    """

    folder: Path
    num_answers: int

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {"folder": str(self.folder), "num_answers": self.num_answers}


def score(
    run_file: RunFile,
    answers: str | Path,
    output: str | Path,
    overrides: Overrides | None = None,
    *,
    shard: int = 256,
    resume: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Let a run file's teacher score existing answers once, and keep the scores for off-policy training.

    The student's weights are not needed.

    Args:
      run_file, overrides: as `train` takes them.
      answers: JSONL or Parquet file of answers, such as `generate` writes.
      output: folder for the scores.
      shard: answers in each of its files.
      resume: continue in `output`: whole shards stay, the others are written (again).
      on_message: gets a line for each shard.
    Raises:
      ConfigurationError: a teacher is a server.
      OutputExistsError: `output` exists and `resume` is False.
      DataError: answers that cannot be used, or `resume` in a folder that was begun with something else.
    """
    check_numbers({"shard": shard})
    config = load_config(run_file, overrides or ())
    with threads(config.runtime.threads):
        return Scored(Path(output), _written(config, Path(answers), Path(output), shard, resume, on_message))


def _written(
    config: RunConfig, answers: Path, output: Path, shard: int, resume: bool, on_message: Callable[[str], None]
) -> int:
    """Number of answers in the cache, which is whole then."""
    if output.exists() and not resume:
        raise OutputExistsError(
            f"the output folder {output} already exists; nothing is overwritten. Choose another, or continue with "
            "--resume."
        )
    if config.teacher.servers:
        raise ConfigurationError(
            f"the run file's teacher is a server ({', '.join(config.teacher.servers.values())}); scores that are kept "
            "are those of weights that are here. Drop teacher.server and name its weights in teacher.path, or train "
            "with the server itself."
        )
    check_writable(output)
    cache = ScoreCache(output)
    rollouts, run = read_answers(answers, dated(config, date_of_scores(output)) if resume else config)
    manifest = {
        "key": run.score_key(),
        "top_k": min(config.rollout.support_size, run.vocabulary.size),
        "num_answers": len(rollouts),
        "answers_per_shard": shard,
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
