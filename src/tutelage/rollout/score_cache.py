"""Answers that a teacher has read, in a folder: its scores of every token, written once and read by many runs.

    FOLDER/
      manifest.json         what the scores depend on: models, tokenizer, templates, stop ids, K; and how many there are
      shard-00000.parquet   so many answers each: tokens, and the teacher's own top K of every token
      index.json            SHA-256 of every shard that is whole

A shard is written beside its place, renamed and then entered in the index, so a scoring that is killed goes on with the
next one. `config` decides whether scores fit a run, `rollout.engines.offline` which answers a step gets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tutelage.errors import DataError
from tutelage.files import sha256_of, write_whole, written_whole
from tutelage.types import Reading, Rollout

if TYPE_CHECKING:
    import pyarrow.parquet

__all__ = ["FORMAT", "AnswerKey", "ScoreCache"]

FORMAT = 1
MANIFEST, INDEX = "manifest.json", "index.json"
TOKENS = ("prompt_tokens", "teacher_prompt_tokens", "response_tokens")
# Columns of numbers, and where a rollout keeps them.
PER_TOKEN = {
    "teacher_logprobs": "teacher.logprobs_T",
    "teacher_entropy": "teacher.entropy_T",
    "teacher_top_tail": "teacher.top.tail_logprobs",
}
PER_TOP = {"teacher_top_ids": "teacher.top.support_ids", "teacher_top_logprobs": "teacher.top.logprobs"}
FOOTERS_KEPT = 64  # of 2 MB each for 256 answers

AnswerKey = tuple[tuple[int, ...], tuple[int, ...] | None, str | None]
"""What both models read before an answer, and which of several teachers: the prompt that it answers."""


@dataclass(frozen=True)
class ScoreCache:
    """One folder of scores.

    Fields:
      folder: where they lie.
    """

    folder: Path
    _footers: dict[int, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What `create` got.

        Raises:
          DataError: there is none, or one of another format.
        """
        path = self.folder / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as problem:
            raise DataError(
                f"{self.folder} holds no scores ({MANIFEST}: {problem}). Give the folder that `tutelage score` wrote."
            ) from problem
        if manifest.get("format") != FORMAT:
            raise DataError(
                f"{path} has the format {manifest.get('format')!r}; this version reads {FORMAT}. Score the answers "
                "again."
            )
        return manifest

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache, written or not."""
        return -(-int(self.manifest["num_answers"]) // int(self.manifest["answers_per_shard"]))

    def create(self, manifest: dict[str, Any]) -> None:
        """Begin a cache: `num_answers`, `answers_per_shard`, and anything that the scores depend on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n")

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"shard-{shard:05d}.parquet"

    def damages(self) -> dict[int, str]:
        """What is wrong with shards that are not as they were written, in their order."""
        index = self._index()
        found = {shard: _damage(self.path(shard), index) for shard in range(self.num_shards)}
        return {shard: problem for shard, problem in found.items() if problem is not None}

    def write(self, shard: int, rollouts: Sequence[Rollout]) -> None:
        """Write a shard of answers that `rollout.TopScorer` has read, a row group each."""
        import pyarrow.parquet

        columns: dict[str, list[Any]] = {
            name: [None if (ids := getattr(r, name)) is None else np.array(ids, np.int32) for r in rollouts]
            for name in TOKENS
        }
        columns |= {name: [getattr(rollout, name) for rollout in rollouts] for name in ("teacher_name", "finished")}
        for name, where in {**PER_TOKEN, **PER_TOP}.items():
            columns[name] = [_numbers(rollout, where) for rollout in rollouts]
        table = pyarrow.table({name: _column(name, values) for name, values in columns.items()})
        path = self.path(shard)
        with written_whole(path) as partial:
            # A row group per answer: a step reads those that it needs, and no others.
            pyarrow.parquet.write_table(table, partial, row_group_size=1, compression="zstd")
        self._footers.pop(shard, None)
        write_whole(self.folder / INDEX, json.dumps({**self._index(), path.name: sha256_of(path)}, indent=2) + "\n")

    def prompts(self, shard: int) -> Iterator[tuple[AnswerKey, int]]:
        """Of each answer of a shard, in order, the prompt and the answer's length in tokens."""
        table = self._open(shard).read([*TOKENS, "teacher_name"])
        columns = (table.column(name) for name in (*TOKENS, "teacher_name"))
        for prompt, teacher_prompt, response, name in zip(*columns, strict=True):
            reads = None if teacher_prompt.as_py() is None else tuple(teacher_prompt.as_py())
            yield (tuple(prompt.as_py()), reads, name.as_py()), len(response)

    def read(self, shard: int, row: int) -> Rollout:
        """One answer with the teacher's reading; what sampled it, and what the student says of it, is not known."""
        table = self._open(shard).read_row_group(row)
        lists = {name: table.column(name).combine_chunks() for name in (*TOKENS, *PER_TOKEN, *PER_TOP)}
        tokens: dict[str, Any] = {name: lists[name][0].as_py() for name in TOKENS}
        num_tokens = len(tokens["response_tokens"])
        numbers: dict[str, Any] = {
            name: torch.from_numpy(lists[name].flatten().to_numpy().copy()) for name in (*PER_TOKEN, *PER_TOP)
        }
        numbers |= {name: numbers[name].view(num_tokens, -1) for name in PER_TOP}
        unknown = torch.full((num_tokens,), torch.nan, dtype=numbers["teacher_logprobs"].dtype)
        rollout = Rollout(
            **tokens,
            behaviour_logprobs=unknown,
            student=Reading(unknown),
            finished=table.column("finished")[0].as_py(),
            teacher_name=table.column("teacher_name")[0].as_py(),
        )
        return rollout.with_tokenwise({path: numbers[name] for name, path in {**PER_TOKEN, **PER_TOP}.items()})

    def _open(self, shard: int) -> pyarrow.parquet.ParquetFile:
        import pyarrow.parquet

        path = self.path(shard)
        try:
            # A footer names every answer of its shard; parsed for each of them it would be most of the reading.
            file = pyarrow.parquet.ParquetFile(path, metadata=self._footers.get(shard))
            if shard not in self._footers and len(self._footers) == FOOTERS_KEPT:
                del self._footers[next(iter(self._footers))]
            self._footers[shard] = file.metadata
            return file
        except (pyarrow.ArrowException, OSError) as problem:
            raise DataError(f"{path} cannot be read ({problem}). {REMEDY}") from problem

    @property
    def fingerprint(self) -> str:
        """Of what the shards hold, and of what they were made for."""
        content = json.dumps([self.manifest, self._index()], sort_keys=True)
        return "sha256 " + hashlib.sha256(content.encode()).hexdigest()

    def _index(self) -> dict[str, str]:
        path = self.folder / INDEX
        index: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return index


REMEDY = "The command that wrote it makes it again: tutelage score ... --resume."
"""What helps against shards that are missing or damaged."""


def _damage(path: Path, index: Mapping[str, str]) -> str | None:
    if path.name not in index:
        return "was not written yet"
    try:
        return None if index[path.name] == sha256_of(path) else "is not what was written"
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"


def _numbers(rollout: Rollout, path: str) -> Any:
    values = rollout.tokenwise(path)
    assert values is not None, f"the teacher has not read this answer: {path} is missing"
    return values.flatten().numpy()


def _column(name: str, values: list[Any]) -> pyarrow.Array:
    import pyarrow

    if name in TOKENS:
        return pyarrow.array(values, pyarrow.list_(pyarrow.int32()))
    return pyarrow.array(values, pyarrow.string()) if name == "teacher_name" else pyarrow.array(values)
