"""Do both models have the same tokens, end answers the same way and read the same question? No weights are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tutelage.config import RunAssembly
from tutelage.preflight.finding import Finding, Verdict
from tutelage.tasks import closing_text
from tutelage.types import Prompt

__all__ = ["closing", "prompts", "sizes", "stops", "tokenizers"]

SHOWN_CHARACTERS, SHOWN_TOKENS = 400, 40


def tokenizers(run: RunAssembly) -> Finding:
    """The same text for every id, and the same cut of a probe text."""
    student = run.tokenizers.student
    equal = "" if len(run.meta_models) == 1 else ", equal by content in every model"
    return Finding(Verdict.ok, f"{len(student.get_vocab())} tokens{equal}")


def sizes(run: RunAssembly) -> Finding:
    """Rows of the embedding tables against tokens; padding rows are masked."""
    rows = {name: model.padded_vocabulary_size for name, model in run.meta_models.items()}
    vocabulary, num_tokens = run.vocabulary, len(run.tokenizers.student.get_vocab())
    shown = ", ".join(f"{name} {size}" for name, size in rows.items())
    missing = num_tokens - (vocabulary.size - len(vocabulary.padding_ids))
    if missing > 0:
        smallest = min(rows.values())
        unread = [i for prompt in run.prompts.prompts for i in _ids(prompt) if i >= smallest]
        return Finding(
            Verdict.error if unread else Verdict.warning,
            f"rows of the embedding tables: {shown}; {missing} of the tokenizer's {num_tokens} tokens have no row in "
            f"one of the models and can be neither read nor drawn; the prompts hold them {len(unread)} times",
            "Use the tokenizer that belongs to the weights, or resize the model's embeddings.",
        )
    padded = "" if len({*rows.values(), vocabulary.size}) == 1 else "; what lies beyond the tokens is masked"
    return Finding(Verdict.ok, f"rows of the embedding tables: {shown}; {num_tokens} tokens{padded}")


def stops(run: RunAssembly) -> Finding:
    """Which ids end an answer of each model, and which event they become."""
    vocabulary, tokenizer = run.vocabulary, run.tokenizers.student
    named = {name: list(model.stop_ids) for name, model in run.meta_models.items()}
    shown = "; ".join(f"{name} {_tokens(tokenizer, ids) if ids else 'none'}" for name, ids in named.items())
    if not vocabulary.stop_ids:
        return Finding(
            Verdict.warning,
            "no model has a stop id, so every answer runs to the length limit",
            "Set eos_token_id in the models' generation_config.json.",
        )
    merged = _tokens(tokenizer, vocabulary.stop_ids)
    if silent := [name for name, ids in named.items() if not ids]:
        return Finding(
            Verdict.warning,
            f"no stop id: {', '.join(silent)} ({shown}); such a model has not learned how an answer ends",
            f"Set eos_token_id in its generation_config.json to one of {merged}.",
        )
    student = set(named["student"])
    if len(named) == 1:
        return Finding(Verdict.ok, shown)
    if not student & set(named.get("teacher", student)):
        return Finding(
            Verdict.warning,
            f"the stop ids have nothing in common: {shown}; all are one stop event, the student's own",
            "Right for a base student and a chat teacher of one family. Otherwise correct eos_token_id in the "
            "generation_config.json of the model that is wrong.",
        )
    how = (
        "the same for all" if all(set(ids) == student for ids in named.values()) else f"merged into one event {merged}"
    )
    return Finding(Verdict.ok, f"{shown}; {how}")


def prompts(run: RunAssembly) -> Finding:
    """The first prompt as either model reads it, as text and as tokens, and where the two begin to differ."""
    prompt = run.prompts.prompts[0]
    student_tokenizer, teacher_tokenizer = run.tokenizers.student, run.tokenizers.teacher
    sides = {"student": (student_tokenizer, list(prompt.student_tokens))}
    if prompt.teacher_tokens is not None and prompt.teacher_name is None:
        sides["teacher"] = (teacher_tokenizer, list(prompt.teacher_tokens))
    else:
        sides = {"both" if run.config.has_teacher else "student": sides["student"]}
    details = tuple(line for name, (tokenizer, ids) in sides.items() for line in _shown(name, tokenizer, ids))
    data = run.config.data
    if run.clock.was_asked:
        dated = (
            f"the chat template asks for the date and gets {run.clock.moment.isoformat()} (data.template_date; "
            "left out, it is the moment when a run is first made, which the run keeps)"
        )
        details = (dated, *details)
    if not run.config.has_teacher:
        return Finding(Verdict.ok, "the student reads the first prompt as below", details=details)
    if "both" in sides:
        if data.use_chat_template is False and teacher_tokenizer.chat_template is not None:
            return Finding(
                Verdict.warning,
                "both read the same plain text, and the teacher's chat template is not used",
                "Leave data.use_chat_template out, unless the teacher is known to answer plain text well.",
                details,
            )
        return Finding(Verdict.ok, "both models read the same tokens", details=details)
    where = _difference(sides["student"], sides["teacher"])
    if data.differs_for_teacher:
        return Finding(Verdict.ok, f"the prompts differ, as [data] asks for: {where}", details=details)
    return Finding(
        Verdict.warning,
        f"the chat templates differ: {where}",
        "Each model reads its own form, which is right if both forms were trained. To use the teacher's for both, copy "
        "its chat template into the student's folder; aligned prompts were seen to recover more of the teacher.",
        details,
    )


def closing(run: RunAssembly) -> Finding:
    """Whether the student's chat template ends an answer with a token that the student stops at."""
    tokenizer = run.tokenizers.student
    is_used = run.config.data.use_chat_template is not False
    text = closing_text(tokenizer, run.config.data.chat_template) if is_used else None
    own, vocabulary = run.meta_models["student"].stop_ids, run.vocabulary
    if text is None:
        return Finding(Verdict.ok, f"no chat template; the student ends with its own {_tokens(tokenizer, own)}")
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if set(ids) & set(own):
        return Finding(Verdict.ok, f"the student's template ends an answer with {text!r}, at which it stops")
    if set(ids) & set(vocabulary.stop_ids):
        return Finding(
            Verdict.ok,
            f"the student's template ends an answer with {text!r}, which is not its own stop {_tokens(tokenizer, own)} "
            "but the teacher's; it counts as a stop here, and the saved student lists it",
        )
    return Finding(
        Verdict.warning,
        f"the student's template ends an answer with {text!r}, which holds no stop id of either model "
        f"({_tokens(tokenizer, vocabulary.stop_ids)}); answers then run on to the length limit",
        "Add the token that ends a turn to eos_token_id in generation_config.json, or set data.use_chat_template = "
        "false for a base student.",
    )


def _ids(prompt: Prompt) -> Iterator[int]:
    yield from prompt.student_tokens
    yield from prompt.teacher_tokens or ()


def _tokens(tokenizer: Any, ids: Sequence[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in ids)


def _shown(name: str, tokenizer: Any, ids: list[int]) -> list[str]:
    """A prompt as text, its line breaks visible, and as tokens; the middle of a long one is left out."""
    text = tokenizer.decode(ids)
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
    names = [repr(tokenizer.decode([i])) for i in ids]
    if len(names) > SHOWN_TOKENS:
        half = SHOWN_TOKENS // 2
        names = [*names[:half], f"[... {len(names) - 2 * half} tokens ...]", *names[-half:]]
    return [f"{name}, as text: {text!r}", f"{name}, as {len(ids)} tokens: {' '.join(names)}"]


def _difference(student: tuple[Any, list[int]], teacher: tuple[Any, list[int]]) -> str:
    """Where two prompts begin to differ, in words."""
    (student_tokenizer, mine), (teacher_tokenizer, other) = student, teacher
    pairs = enumerate(zip(mine, other, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(other)))

    def seen(tokenizer: Any, ids: list[int]) -> str:
        return repr(tokenizer.decode(ids[place : place + 8])) if ids[place:] else "nothing"

    return (
        f"from token {place} on the student reads {seen(student_tokenizer, mine)}, the teacher "
        f"{seen(teacher_tokenizer, other)}"
    )
