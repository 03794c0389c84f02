"""Check what a vLLM server says: its JSON as plain numbers, or a ServerError that names what is wrong with it.

A wrong number that is learned from leaves no trace, so nothing is taken on trust: what is missing, of another type or
another length, of another model, no probability, or no token ends the run before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import ServerError
from tutelage.rollout.servers.server import MAX_BYTES, Server

__all__ = ["ServedModel", "bytes_for", "choice_of", "logprob_of", "malformed", "prompt_places", "served_model"]

# Sums of float32 logarithms and probabilities leave 0 and 1 by less.
LOGPROB_ROUNDING, MASS_ROUNDING = 1e-4, 1e-4
# A token with its number and its text, which may be long and escaped, in JSON.
BYTES_PER_ENTRY = 1024


@dataclass(frozen=True)
class ServedModel:
    """What a server says about the model that it serves.

    Fields:
      name: by which it is asked for.
      root: where the server has it from; None = it does not say.
      max_tokens: most tokens of a prompt with its answer; None = it does not say.
    """

    name: str
    root: str | None
    max_tokens: int | None


def bytes_for(num_entries: int) -> int:
    """Most bytes that an answer with so many tokens and numbers may have."""
    return MAX_BYTES + BYTES_PER_ENTRY * num_entries


def malformed(where: str, found: str, expected: str) -> ServerError:
    """The error for an answer that is not what was asked for."""
    return ServerError(
        f"{where} answered with {found}; expected {expected}. Check that it is a vLLM server (0.20 or newer) and "
        "serves the right model; nothing was learned from this answer."
    )


def served_model(server: Server) -> ServedModel:
    """The first model that a server lists.

    Raises:
      ServerError: there is none, or the list makes no sense.
    """
    where, answer = f"{server.url}/v1/models", server.get("/v1/models")
    cards = answer.get("data") if isinstance(answer, dict) else None
    if cards == []:
        raise ServerError(f"{server.url} serves no model. Start it with the model that {server.key} is to be.")
    card = cards[0] if isinstance(cards, list) else None
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        raise malformed(where, "no list of models", "a list `data` of objects with an `id`")
    limit, root = card.get("max_model_len"), card.get("root")
    if limit is not None and not (_is_whole(limit) and limit > 0):
        raise malformed(where, f"max_model_len {_short(limit)}", "a number of tokens")
    return ServedModel(card["id"], root if isinstance(root, str) else None, limit)


def choice_of(answer: object, where: str, model: str, num_prompt_tokens: int) -> Mapping[str, Any]:
    """The one completion of an answer, which must be of this model and of a prompt of this length."""
    if not isinstance(answer, dict):
        raise malformed(where, f"a JSON {type(answer).__name__}", "an object with `choices`")
    name, usage = answer.get("model", model), answer.get("usage")
    if name != model:
        raise malformed(where, f"the answer of the model {_short(name)}", f"that of {model!r}, which was asked")
    if isinstance(usage, dict) and usage.get("prompt_tokens", num_prompt_tokens) != num_prompt_tokens:
        raise malformed(where, f"a prompt of {_short(usage['prompt_tokens'])} tokens", f"the {num_prompt_tokens} sent")
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise malformed(where, "no list `choices` of one object", "one completion")
    return choices[0]


def logprob_of(value: object, where: str) -> float:
    """A number that can be the logarithm of a probability."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN, and works for whole numbers that no float holds.
    if not is_number or not value <= LOGPROB_ROUNDING:  # type: ignore[operator]
        raise malformed(where, f"the log-probability {_short(value)}", "a number of at most 0")
    return float(value) if value > -1e300 else -math.inf  # type: ignore[operator, arg-type]


def prompt_places(
    choice: Mapping[str, Any], where: str, tokens: Sequence[int], first: int, num_asked: int, num_rows: int
) -> list[dict[int, float]]:
    """Log-probabilities of the most probable tokens and of the sent one, at every place from `first` on.

    Args:
      tokens: that were sent.
      num_asked: most probable tokens per place.
      num_rows: of the model's embedding table; ids below it may be named.
    """
    places = choice.get("prompt_logprobs")
    if not isinstance(places, list) or len(places) != len(tokens):
        told = len(places) if isinstance(places, list) else 0
        raise malformed(
            where, f"log-probabilities of {told} tokens of a prompt of {len(tokens)}", "`prompt_logprobs` of all"
        )
    for place, token in zip(places[1:], tokens[1:], strict=True):
        if not isinstance(place, dict) or str(token) not in place:
            raise malformed(where, f"numbers without those of the sent token {token}", "it among them at its place")
    return [
        _place(place, where, token, num_asked, num_rows)
        for place, token in zip(places[first:], tokens[first:], strict=True)
    ]


def _place(place: Mapping[str, Any], where: str, token: int, num_asked: int, num_rows: int) -> dict[int, float]:
    told: dict[int, float] = {}
    for name, entry in place.items():
        i = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1
        # str(i): "07" would be a second 7
        if not 0 <= i < num_rows or str(i) != name:
            raise malformed(where, f"the token id {_short(name)}", f"ids from 0 to {num_rows - 1}, the teacher's")
        if not isinstance(entry, dict):
            raise malformed(where, f"{_short(entry)} for a token", "an object with `logprob`")
        told[i] = logprob_of(entry.get("logprob"), where)
    # The sent token stands beside the most probable ones where it is none of them.
    rank = place[str(token)].get("rank")
    is_beside = _is_whole(rank) and rank > num_asked
    expected = min(num_asked + is_beside, num_rows)
    if len(told) < expected:
        raise malformed(where, f"{len(told)} tokens at a place", f"the {expected} that were asked for")
    mass = math.fsum(math.exp(value) for value in told.values())
    if mass > 1 + MASS_ROUNDING:
        raise malformed(where, f"probabilities that add up to {mass:.6g}", "at most 1")
    return told


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    shown = ascii(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number beyond 10^30"
    return shown if len(shown) <= 60 else shown[:60] + "..."
