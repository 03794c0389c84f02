"""One vocabulary and one stop event for two models.

Student and teacher must share a tokenizer, yet two things still differ between real pairs: embedding tables are padded
to different sizes, and each model has its own set of stop ids. Both are resolved here, on the logits, before any policy
or loss sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ModelError, VocabularyMismatchError
from tutelage.kernels import VocabularyView
from tutelage.models.language_model import LanguageModel

__all__ = ["Vocabulary", "align", "check_same_tokenizer"]

# Text on which two tokenizers with the same tokens must also cut alike (merges and pre-tokenizers may still differ).
PROBE_TEXT = "Solve 12.5 + 3 = \\boxed{15.5}.\n\n  def f(x):\n\treturn x  # naïve café, 東京, 🙂 isn't it?"


@dataclass(frozen=True)
class Vocabulary:
    """The ids that both models have, with all ways of stopping made one event.

    Fields:
      size: V, number of leading logits kept of either model.
      stop_ids: union of both models' stop ids inside the vocabulary; empty = answers end at the length limit only.
      stop_id: the student's own id, the one that is emitted and that carries all stop mass; None if there is none.
      padding_ids: ids below `size` that stand for no token; masked in both models.

    Why the union: an id that stops the teacher but not the student (or the reverse) would be an ordinary token on one
    side and impossible on the other, and KL(student || teacher) would be infinite. Mass is conserved, and the result is
    the same whichever of the ids carried it (TRB, arXiv 2605.31159, App. "EOS"). When a student is saved, its
    generation configuration lists the union too, so that it stops where it was trained to.
    """

    size: int
    stop_ids: tuple[int, ...] = ()
    stop_id: int | None = None
    padding_ids: tuple[int, ...] = ()
    _masks: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _stop_ids: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def shared_logits(self, logits: Tensor) -> Tensor:
        """Logits of either model over the shared vocabulary: [..., padded V] -> [..., V], float32 or wider.

        The stop coordinate gets the log-sum-exp of all stop logits; the other stop ids and padding get -inf.
        Differentiable: a gradient on the stop event reaches every stop id in proportion to its share.
        """
        kept = logits[..., : self.size]
        kept = kept.float() if kept.dtype in (torch.bfloat16, torch.float16) else kept
        stop = torch.logsumexp(kept[..., self._stops(kept.device)], dim=-1) if len(self.stop_ids) > 1 else None
        if stop is not None or self.padding_ids:
            kept = kept.masked_fill(self._hidden(kept.device), float("-inf"))
        if stop is not None:
            assert self.stop_id is not None
            kept = torch.cat([kept[..., : self.stop_id], stop[..., None], kept[..., self.stop_id + 1 :]], dim=-1)
        return kept

    def view(self, device: torch.device) -> VocabularyView:
        """The same for kernels that see a part of the ids at a time."""
        merged = self.stop_ids if len(self.stop_ids) > 1 else ()
        hides = bool(merged or self.padding_ids)
        return VocabularyView(self.size, merged, self.stop_id, self._hidden(device) if hides else None)

    def _stops(self, device: torch.device) -> Tensor:
        """The stop ids there; a list would be sent each time, and the host would wait for it."""
        if device not in self._stop_ids:
            self._stop_ids[device] = torch.tensor(self.stop_ids, device=device)
        return self._stop_ids[device]

    def _hidden(self, device: torch.device) -> Tensor:
        """[V] True where no token of its own is left; made once per device."""
        if device not in self._masks:
            mask_V = torch.zeros(self.size, dtype=torch.bool)
            mask_V[list(self.padding_ids)] = True
            mask_V[list(self.stop_ids)] = True
            if self.stop_id is not None:
                mask_V[self.stop_id] = False
            self._masks[device] = mask_V.to(device)
        return self._masks[device]


def align(student: LanguageModel, *others: LanguageModel | None) -> Vocabulary:
    """The vocabulary that a student shares with its teacher, and with other teachers and a reference.

    Args:
      student, others: models with their tokenizers; bare models (no tokenizer) are taken at the smaller size.
    Raises:
      VocabularyMismatchError: the tokenizers differ; the message names the first differing tokens.
      ModelError: the student's stop id lies outside the shared vocabulary.
    """
    models = [student, *(other for other in others if other is not None)]
    for other in models[1:]:
        if student.tokenizer is not None and other.tokenizer is not None:
            check_same_tokenizer(student.tokenizer, other.tokenizer)
    known = set(student.known_ids).intersection(*(model.known_ids for model in models))
    size = max(known) + 1
    stop_ids = tuple(dict.fromkeys(i for model in models for i in model.stop_ids if i in known))
    if student.stop_ids and student.stop_ids[0] not in known:
        raise ModelError(
            f"the student's stop id {student.stop_ids[0]} is not a token of the shared vocabulary (size {size}). "
            "Correct `eos_token_id` in its generation_config.json."
        )
    padding = tuple(i for i in range(size) if i not in known)
    return Vocabulary(size, stop_ids, stop_ids[0] if stop_ids else None, padding)


def check_same_tokenizer(student_tokenizer: Any, teacher_tokenizer: Any, whose: str = "teacher") -> None:
    """Refuse two tokenizers that differ in content.

    Equal means: the same text for every id, and the same cut of a probe text. Sizes of embedding tables, chat
    templates and special-token roles may differ. `whose` names the second one in the refusal.

    Raises:
      VocabularyMismatchError: with the first differing tokens, or the probe's first differing piece.
    """
    student, teacher = _by_id(student_tokenizer), _by_id(teacher_tokenizer)
    different = sorted(i for i in student.keys() | teacher.keys() if student.get(i) != teacher.get(i))
    if different:
        shown = "; ".join(f"id {i}: student {student.get(i)!r}, {whose} {teacher.get(i)!r}" for i in different[:3])
        raise VocabularyMismatchError(
            f"student and {whose} have different tokenizers: {len(different)} of "
            f"{len(student.keys() | teacher.keys())} ids differ, first {shown}. Distillation compares "
            f"next-token distributions, so both must use the same tokens. Choose a {whose} of the student's "
            "model family."
        )
    student_cut = student_tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    teacher_cut = teacher_tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    if student_cut != teacher_cut:
        place = _first_difference(student_cut, teacher_cut)
        raise VocabularyMismatchError(
            f"student and {whose} know the same tokens but cut text differently: the probe text differs at piece "
            f"{place} (student {[student[i] for i in student_cut[place : place + 3]]}, {whose} "
            f"{[teacher[i] for i in teacher_cut[place : place + 3]]}). Use the same tokenizer files for both."
        )


def _by_id(tokenizer: Any) -> dict[int, str]:
    return {int(i): token for token, i in tokenizer.get_vocab().items()}


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
