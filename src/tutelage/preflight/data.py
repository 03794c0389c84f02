"""Do prompts and answers fit, and does the verifier accept what the data set calls right? No models are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.config import RunAssembly, check_runtime, check_writable
from tutelage.errors import DataError
from tutelage.preflight.finding import Finding, Verdict
from tutelage.tasks import Columns, Verifier, load_problems
from tutelage.training import RunFolder

__all__ = ["contexts", "contamination", "lengths", "references", "run_file"]

NUM_REFERENCES = 64
SOLUTION_COLUMN = "solution"


def run_file(run: RunAssembly, num_processes: int = 1) -> Finding:
    """The recipe, the device and the output folder."""
    config = run.config
    check_runtime(config, is_shared=num_processes > 1)
    run.check_settings()
    device, folder = run.runtime.device, RunFolder(Path(config.output_folder))
    check_writable(folder.path)
    recipes = [phase.recipe for phase in run.phases[:3]]
    methods = "; ".join(f"{recipe.policy} on {' + '.join(map(str, recipe.losses))}" for recipe in recipes)
    if folder.path.exists():
        return Finding(
            Verdict.warning,
            f"the output folder {folder.path} exists, and a run never overwrites one",
            "Choose another with --set output=FOLDER, or continue that run with --resume.",
        )
    return Finding(Verdict.ok, f"{config.steps} steps on {device} into {folder.path}: {methods}")


def contexts(run: RunAssembly) -> Finding:
    """Prompts and answers at their limits fit into the context of every model that reads them."""
    run.check_lengths()
    offline = run.offline_answers
    scored = "" if offline is None else f", {sum(map(len, offline.places.values()))} offline answers"
    names = "".join(f", {len(problems.prompts)} of {problems.name!r}" for problems in run.evaluation_sets)
    return Finding(
        Verdict.ok, f"{len(run.prompts.prompts)} prompts for training{scored}{names} fit, with their answers"
    )


def contamination(run: RunAssembly) -> Finding:
    """No problem that is evaluated on is a training prompt as well."""
    sets, trained = run.evaluation_sets, {tuple(prompt.student_tokens) for prompt in run.prompts.prompts}
    shared = {
        problems.name: (sum(tuple(prompt.student_tokens) in trained for prompt in problems.prompts), problems)
        for problems in sets
    }
    seen = [f"{num} of {len(problems.prompts)} in {name!r}" for name, (num, problems) in shared.items() if num]
    if seen:
        return Finding(
            Verdict.warning,
            f"problems that are training prompts too: {', '.join(seen)}; what is measured on them is partly memory",
            "Evaluate on other problems, or take these out of the training data.",
        )
    return Finding(
        Verdict.ok, "no problem of an evaluation set is a training prompt" if sets else "nothing is evaluated"
    )


def lengths(run: RunAssembly) -> Finding:
    """Limits of prompts and answers against the data's lengths."""
    config, prompts = run.config, run.prompts.prompts
    tokenizer, limit = run.tokenizers.student, run.config.rollout.max_new_tokens
    asked = [prompt.longest for prompt in prompts]
    text = f"{len(prompts)} prompts of {_percentiles(asked)} tokens, limit {config.data.max_prompt_tokens}"
    solutions = _solutions(run)
    known = list(solutions.values()) or [answer for answer in run.prompts.answers if answer is not None]
    if not known:
        return Finding(Verdict.ok, f"{text}; answers at most {limit}")
    needed = [len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in known[:1024]]
    what = "reference solutions" if solutions else "reference answers"
    too_long = sum(length > limit for length in needed) / len(needed)
    text += f"; {what} of {_percentiles(needed)}, limit {limit}"
    if too_long > 0.05:
        return Finding(
            Verdict.warning,
            f"{text}: {100 * too_long:.0f}% of the {what} would be cut",
            f"Set rollout.max_new_tokens to at least {max(needed)}.",
        )
    return Finding(Verdict.ok, text)


def references(run: RunAssembly) -> Finding:
    """The verifier accepts the data set's own answers and solutions, and not those of other problems."""
    config = run.config
    _, answers = run.prompts.answered(NUM_REFERENCES)
    if not config.data.verifier or not answers:
        return Finding(Verdict.skipped, "the prompts have no answers, or data.verifier is empty: nothing is judged")
    texts = _questions(run)
    copied = [answer for answer in answers if answer.strip() in texts]
    column, ids = config.data.answer_column, set(run.prompts.ids)
    if len(copied) > len(answers) / 2 or sum(answer in ids for answer in answers) > len(answers) / 2:
        kind = "repeats the prompt" if copied else "holds the problems' ids"
        return Finding(
            Verdict.error,
            f"data.answer_column {column!r} {kind}: for example {answers[0][:80]!r}",
            "Set data.answer_column to the column with the right answer.",
        )
    solutions = _solutions(run)
    with Verifier(config.data.verifier) as verifier:
        boxed = [f"\\boxed{{{answer}}}" for answer in answers]
        accepted = [
            verifier.verify(form, answer) or verifier.verify(answer, answer)
            for form, answer in zip(boxed, answers, strict=True)
        ]
        others = [answers[1:] + answers[:1], boxed[1:] + boxed[:1]]
        different = [i for i, (a, b) in enumerate(zip(answers, others[0], strict=True)) if a != b]
        wrong = [verifier.verify(others[1][i], answers[i]) for i in different]
        ids_asked = [i for i, answer in zip(run.prompts.ids, run.prompts.answers, strict=True) if answer is not None]
        solved = [
            (i, verifier.verify(solutions[i], answer))
            for i, answer in zip(ids_asked, answers, strict=False)
            if i in solutions
        ]
    rejected = [answer for answer, is_right in zip(answers, accepted, strict=True) if not is_right]
    unsolved = [i for i, is_right in solved if not is_right]
    if rejected or unsolved:
        num, of = (len(rejected), len(accepted)) if rejected else (len(unsolved), len(solved))
        example = (
            f"the answer {rejected[0][:80]!r}"
            if rejected
            else f"the solution of {unsolved[0]}, which ends in {solutions[unsolved[0]][-40:]!r}"
        )
        return Finding(
            Verdict.error if num > of / 2 else Verdict.warning,
            f"the verifier {config.data.verifier!r} rejects {num} of {of} of the data set's own "
            f"{'answers' if rejected else 'solutions'}, such as {example}",
            f"Set data.answer_column (now {column!r}) to the column with the final answer, or data.verifier to one "
            "that understands it.",
        )
    if different and sum(wrong) > len(wrong) / 2:
        return Finding(
            Verdict.error,
            f"the verifier {config.data.verifier!r} accepts {sum(wrong)} of {len(wrong)} answers that belong to other "
            "problems, so every reward would be 1",
            "Use a verifier that compares with the reference.",
        )
    if len(answers) > 4 and len(set(answers)) == 1:
        return Finding(
            Verdict.warning,
            f"the first {len(answers)} problems all have the answer {answers[0][:80]!r}",
            f"Check data.answer_column (now {column!r}).",
        )
    extra = f" and all of {len(solved)} reference solutions" if solved else ""
    return Finding(Verdict.ok, f"{config.data.verifier!r} accepts all of {len(answers)} reference answers{extra}")


def _questions(run: RunAssembly) -> set[str]:
    """The questions as the data set has them."""
    data = run.config.data
    limit = min(data.limit or 1024, 1024)
    problems = load_problems(data.path, Columns(data.prompt_column, answer=None), split=data.split, limit=limit)
    return {problem.text.strip() for problem in problems}


def _solutions(run: RunAssembly) -> dict[str, str]:
    """Problem id -> worked solution, where the data set has such a column."""
    data = run.config.data
    if data.answer_column == SOLUTION_COLUMN:
        return {}
    try:
        problems = load_problems(
            data.path,
            Columns(data.prompt_column, SOLUTION_COLUMN),
            split=data.split,
            limit=min(data.limit or 1024, 1024),
        )
    except DataError:  # there is no such column
        return {}
    return {problem.id: problem.answer for problem in problems if problem.answer is not None}


def _percentiles(values: Sequence[int]) -> str:
    middle, high = np.percentile(values, [50, 95])
    return f"{middle:.0f} (median), {high:.0f} (95%) and at most {max(values)}"
