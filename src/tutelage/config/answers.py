"""From a file of answers to token ids that a teacher can read, with prompts as training renders them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.config.assembly import RunAssembly
from tutelage.config.clock import DATE, dated
from tutelage.config.models import context_length, named_teachers
from tutelage.config.prompts import read_prompts
from tutelage.config.schema import RunConfig
from tutelage.errors import DataError
from tutelage.models import Vocabulary
from tutelage.tasks import Columns, Row, check_text, excerpt, load_problems, rows_of
from tutelage.types import Rollout

__all__ = ["read_answers"]

RESPONSE, TOKENS = "response", "response_tokens"


def read_answers(path: Path, config: RunConfig) -> tuple[list[Rollout], RunAssembly]:
    """Every answer of a file with its prompt; nothing is known of its tokens yet.

    Rows as `tutelage generate` writes them (`id`, `sample`) answer the prompts of `data.path`; any other row has a
    prompt of its own, in `data.prompt_column` or `prompt`. The answer is `response_tokens` where a row has them,
    otherwise `response` as text. A text gets a stop token, unless the row says `finished = false`.

    Returns:
      the answers; and the run that reads them, with the configuration's own date or, if it has none, the one that
      `tutelage generate` wrote beside the answers.
    Raises:
      DataError: a row that cannot be used, or an answer that does not fit into a model's context.
    """
    if not path.is_file():
        raise DataError(f"--answers: {path} is not there. Give a .jsonl, .json or .parquet file of answers.")
    columns = ["id", "sample", RESPONSE, TOKENS, "finished", DATE, config.data.prompt_column, "prompt"]
    rows = list(rows_of(str(path), "train", columns))
    if not rows:
        raise DataError(f"--answers: {path} has no rows; expected at least one answer.")
    run = RunAssembly.for_sampling(dated(config, _date_of(path, rows)))
    tokenizers, vocabulary, data = run.tokenizers, run.vocabulary, config.data
    is_generated = all("id" in row and "sample" in row for _, row in rows)
    if is_generated:
        ids, prompts = [str(row["id"]) for _, row in rows], run.prompts
    else:
        column = data.prompt_column if data.prompt_column in rows[0][1] else "prompt"
        data = data.model_copy(update={"path": str(path), "prompt_column": column, "limit": None, "verifier": ""})
        ids = [problem.id for problem in load_problems(path, Columns(column, answer=None))]
        prompts = read_prompts(data, tokenizers, run.clock)
    by_id = dict(zip(prompts.ids, prompts.prompts, strict=True))
    known = set(range(vocabulary.size)) - set(vocabulary.padding_ids)
    rollouts = []
    for problem_id, (place, row) in zip(ids, rows, strict=True):
        where = f"{path}, {place}"
        prompt = by_id.get(problem_id)
        if prompt is None and is_generated:
            raise DataError(
                f"{where} answers the problem {problem_id!r}, which {data.path} does not have, or which is longer than "
                "data.max_prompt_tokens. Score the answers with the data.path that they were generated from."
            )
        if prompt is None:
            continue  # too long, as the warning of `read_prompts` says
        tokens, finished = _tokens(row, where, tokenizers.student, vocabulary, known)
        rollouts.append(Rollout.answer_to(prompt, tokens, torch.full((len(tokens),), torch.nan), finished=finished))
    _check_answer_lengths(path, config, rollouts)
    return rollouts, run


def _date_of(path: Path, rows: Sequence[tuple[str, Row]]) -> str | None:
    """The date that chat templates got when the answers were generated; None = they did not ask for one."""
    dates = {row.get(DATE) for _, row in rows}
    if len(dates) > 1:
        raise DataError(
            f"{path} has answers to prompts of different dates ({', '.join(sorted(map(str, dates)))}; column {DATE!r})"
            "; expected one. Score the answers of each date by themselves."
        )
    date = dates.pop()
    return None if date is None else str(date)


def _tokens(row: Any, where: str, tokenizer: Any, vocabulary: Vocabulary, known: set[int]) -> tuple[list[int], bool]:
    """An answer's token ids, the stop token included, and whether it has one."""
    given, text = row.get(TOKENS), row.get(RESPONSE)
    if given is None and not isinstance(text, str):
        raise DataError(
            f"{where} has {excerpt(text)} in column {RESPONSE!r} and no {TOKENS!r}; expected the answer as text or as "
            "token ids. Complete or remove the row."
        )
    if given is None:
        check_text(text, f"column {RESPONSE!r}", where)
    elif not isinstance(given, list):
        raise DataError(f"{where} has {excerpt(given)} in column {TOKENS!r}; expected token ids. Remove the row.")
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"] if given is None else given)
    if wrong := [token for token in tokens if type(token) is not int or token not in known]:
        raise DataError(f"{where} has the token {excerpt(wrong[0])}, which no model of the run knows. Remove the row.")
    if any(token in vocabulary.stop_ids for token in tokens[:-1]):
        raise DataError(f"{where} goes on after a stop token; expected one at the end only. Cut the answer there.")
    is_stopped = bool(tokens) and tokens[-1] in vocabulary.stop_ids
    if is_stopped:
        tokens.pop()
    finished = is_stopped or bool(row.get("finished", given is None))
    if finished and vocabulary.stop_id is not None:
        tokens.append(vocabulary.stop_id)
    if not tokens:
        raise DataError(f"{where} has an empty answer without an end; there is nothing to learn. Remove the row.")
    return tokens, finished


def _check_answer_lengths(path: Path, config: RunConfig, rollouts: Sequence[Rollout]) -> None:
    for name, model in named_teachers(config):
        own = [rollout for rollout in rollouts if rollout.teacher_name == name]
        for reader, lengths in (
            (config.student, [len(r.prompt_tokens) + len(r) for r in own]),
            (model, [len(r.tokens_for_teacher) + len(r) for r in own]),
        ):
            limit = context_length(reader)
            if limit is not None and own and max(lengths) > limit:
                raise DataError(
                    f"an answer of {path} has {max(lengths)} tokens with its prompt, but {reader.path!r} "
                    f"holds {limit}{limit.remark}. Remove or cut answers that are longer."
                )
