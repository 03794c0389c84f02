"""Let the teacher score existing answers, and write its scores to a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tutelage.config import RunConfig, check_writable, load_route_tokenizers, load_tokenizers
from tutelage.config.answers import read_answers
from tutelage.config.clock import date_of_scores, dated
from tutelage.config.fingerprints import differences
from tutelage.config.models import load_model, load_teacher
from tutelage.config.scores import score_key, shared_vocabulary
from tutelage.errors import DataError, OutputExistsError
from tutelage.files import sha256_of
from tutelage.locks import hold, release
from tutelage.models import LanguageModel, Vocabulary
from tutelage.rollout import ScoreCache, score_top
from tutelage.runtime import LocalRuntime
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
    cache, tokenizers = ScoreCache(output), load_tokenizers(config)
    vocabulary = shared_vocabulary(config, tokenizers)
    if resume:
        config = dated(config, date_of_scores(output))
    rollouts, config = read_answers(answers, config, tokenizers, vocabulary)
    manifest = {
        "key": score_key(config, tokenizers, vocabulary),
        "top_k": min(config.rollout.support_size, vocabulary.size),
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
        _write_missing(config, cache, tokenizers[1], vocabulary, rollouts, on_message)
    finally:
        release(output)
    return len(rollouts)


def _write_missing(
    config: RunConfig,
    cache: ScoreCache,
    tokenizer: Any,
    vocabulary: Vocabulary,
    rollouts: list[Rollout],
    on_message: Callable[[str], None],
) -> None:
    """Write the shards that are missing or damaged."""
    answers_per_shard, damages = int(cache.manifest["answers_per_shard"]), cache.damages()
    teachers = _load_teachers(config, tokenizer) if damages else {}
    for shard, problem in damages.items():
        if cache.path(shard).exists():
            on_message(f"{cache.path(shard).name} {problem}; it is written again")
        first = shard * answers_per_shard
        cache.write(shard, _read(config, teachers, vocabulary, rollouts[first : first + answers_per_shard]))
        on_message(f"shard {shard + 1} of {cache.num_shards} written")


def _load_teachers(config: RunConfig, tokenizer: Any) -> dict[str | None, LanguageModel]:
    device = LocalRuntime(config.runtime.device).device
    routes, read = config.teacher.routes, load_route_tokenizers(config)
    return {
        None: load_teacher(config.teacher, tokenizer, device),
        **{name: load_model(model, read[name], device) for name, model in routes.items()},
    }


def _read(
    config: RunConfig, teachers: dict[str | None, LanguageModel], vocabulary: Vocabulary, rollouts: list[Rollout]
) -> list[Rollout]:
    """The answers with their teachers' fields, in the same order."""
    scored = list(rollouts)
    for name, teacher in teachers.items():
        places = [place for place, rollout in enumerate(rollouts) if rollout.teacher_name == name]
        own = [rollouts[place] for place in places]
        size, most = config.rollout.support_size, config.rollout.score_tokens
        for place, read in zip(places, score_top(teacher, vocabulary, own, top_k=size, max_tokens=most), strict=True):
            scored[place] = read
    return scored
