"""Recorded conversations cut before an answer of the assistant: prompts for distillation turn by turn.

A student that continues a teacher's conversation by one turn needs no environment: nothing that it writes is executed.
The rows are ordinary prompts, so any method learns on them (ReOPD, arXiv 2607.04763).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tutelage.errors import ConfigurationError, DataError, check_inside
from tutelage.tasks.problems import DEFAULT_PROMPT_COLUMN, Message

__all__ = ["prefix_pool", "turn_shares"]

SCOPES = ("conversation", "pool")


def turn_shares(num_turns: int, decay: float) -> list[float]:
    """How often each turn t = 0, 1, ... is asked for: proportional to decay^t, 1 in all.

    Args:
      decay: in [0, 1]; kappa of the paper, 0.6 there. 1 = all turns alike, 0 = the first one only.
    """
    weights = [decay**turn for turn in range(num_turns)]
    return [weight / sum(weights) for weight in weights]


def prefix_pool(
    conversations: Sequence[Sequence[Message]],
    count: int,
    *,
    decay: float = 0.6,
    over: str = "conversation",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Rows of a prompt file, each a beginning of a conversation that waits for the assistant's turn t.

    The paper's text says that turn t is drawn with a probability proportional to decay^t. Whether that is so in each
    conversation or over all of them together it does not say; they differ where conversations have different lengths.

    Args:
      conversations: messages, of which the assistant's are the teacher's turns; none of them is filtered.
      count: rows, drawn with replacement.
      decay: see `turn_shares`.
      over: "conversation": one of them is drawn, all alike, then its turn; "pool": turns of all are drawn together.
      seed: of the draws.
    Returns:
      {"problem": messages before the turn, "conversation": its place, "turn": t, "num_turns": K}.
    Raises:
      DataError: there is no conversation, or one without a turn, or a turn that follows another or nothing at all.
    """
    check_inside(decay, "decay", 0 <= decay <= 1, "a number from 0 to 1")
    if over not in SCOPES:
        raise ConfigurationError(f"over is {over!r}; expected one of {', '.join(SCOPES)}.")
    if not conversations:
        raise DataError("there are no conversations to cut; expected at least one. Record some with the teacher.")
    turns = [_turns(place, messages) for place, messages in enumerate(conversations)]
    generator = random.Random(seed)
    if over == "conversation":
        places = generator.choices(range(len(turns)), k=count)
        drawn = [(place, _drawn_turn(len(turns[place]), decay, generator)) for place in places]
    else:
        all_turns = [(place, turn) for place, own in enumerate(turns) for turn in range(len(own))]
        drawn = generator.choices(all_turns, [decay**turn for _, turn in all_turns], k=count)
    return [
        {
            DEFAULT_PROMPT_COLUMN: [dict(message) for message in conversations[place][: turns[place][turn]]],
            "conversation": place,
            "turn": turn,
            "num_turns": len(turns[place]),
        }
        for place, turn in drawn
    ]


def _drawn_turn(num_turns: int, decay: float, generator: random.Random) -> int:
    return generator.choices(range(num_turns), turn_shares(num_turns, decay))[0]


def _turns(place: int, messages: Sequence[Message]) -> list[int]:
    """Where the assistant's turns are."""
    found = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
    wrong = [number for number in found if number == 0 or number - 1 in found]
    if not found or wrong:
        what = "has no message of the assistant" if not found else f"has nothing to answer before message {wrong[0]}"
        raise DataError(
            f"conversation {place} {what}; expected turns of the assistant, each after a message of somebody else. "
            "Remove the conversation, or join its turns."
        )
    return found
