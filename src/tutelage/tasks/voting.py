"""Which responses give the same final answer?  By the equality that a verifier judges with."""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.tasks.verifiers import Verifier

__all__ = ["answer_classes"]


def answer_classes(verifier: Verifier, responses: Sequence[str], finished: Sequence[bool]) -> list[int]:
    """Equal numbers for responses whose final answers are equal, from 0 in the order of the responses; -1 = no answer.

    A response belongs to the first class whose first answer the verifier would have called right for it. For answers
    rounded differently that equality is not transitive, so the order may then matter.

    Args:
      responses: to one problem.
      finished: whether each one ended by itself.
    """
    first_answers: list[str] = []
    class_of: dict[str, int] = {}
    found = []
    for response, has_finished in zip(responses, finished, strict=True):
        answer = verifier.final_answer(response, finished=has_finished)
        if answer is None:
            found.append(-1)
            continue
        if answer not in class_of:
            equal = (
                place
                for place, first in enumerate(first_answers)
                if verifier.verify(response, first, finished=has_finished)
            )
            class_of[answer] = next(equal, len(first_answers))
            if class_of[answer] == len(first_answers):
                first_answers.append(answer)
        found.append(class_of[answer])
    return found
