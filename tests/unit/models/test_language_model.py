"""Cached decoding is the plain forward, whatever the rows' lengths."""

from __future__ import annotations

import torch

from tests.support.tiny_models import make_model, rounding
from tutelage.models import (
    LanguageModel,
    as_language_model,
)


def decode_one_by_one(model: LanguageModel, sequences: list[list[int]], split: int) -> list[torch.Tensor]:
    """Logits after every single token that is fed after a prefill of each row's own length."""
    lengths = torch.tensor([min(split + row, len(s) - 1) for row, s in enumerate(sequences)])
    cache = model.prefill([s[:n] for s, n in zip(sequences, lengths.tolist(), strict=True)])
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in range(min(len(s) for s in sequences) - int(lengths.max())):
        tokens = torch.tensor([[s[int(n) + step]] for s, n in zip(sequences, lengths, strict=True)])
        hidden = model.hidden_cached(tokens, (lengths + step)[:, None], cache, int(lengths.max()) + step + 1)
        for row, new in zip(logits, model.logits(hidden[:, -1]), strict=True):
            row.append(new)
    return [torch.stack(row) for row in logits]


@torch.no_grad()
def test_ragged_cached_decoding_equals_plain_forwards(architecture: str) -> None:
    model = as_language_model(make_model(architecture, seed=4))
    sequences = torch.randint(0, 40, (3, 14), generator=torch.Generator().manual_seed(0)).tolist()
    for row, (sequence, cached) in enumerate(zip(sequences, decode_one_by_one(model, sequences, 3), strict=True)):
        plain = model.module(input_ids=torch.tensor([sequence])).logits[0]
        start = 3 + row
        torch.testing.assert_close(cached, plain[start : start + len(cached)], **rounding(architecture))


@torch.no_grad()
def test_a_rolled_back_draft_leaves_no_trace(architecture: str) -> None:
    """Four tokens are drafted in rows of different lengths; all, some or none of them are refused and written over."""
    model = as_language_model(make_model(architecture, seed=4))
    tokens = torch.randint(0, 39, (3, 13), generator=torch.Generator().manual_seed(1))
    starts, kept = torch.tensor([3, 5, 4]), torch.tensor([0, 2, 4])
    cache = model.prefill([row[:start] for row, start in zip(tokens.tolist(), starts.tolist(), strict=True)])
    places = torch.arange(4)
    cache.roll_back(starts)
    draft = tokens.gather(1, starts[:, None] + places).where(places < kept[:, None], 39)
    # In two pieces, as a draft is written, and a single one of them, as most are.
    model.hidden_cached(draft[:, :1], starts[:, None], cache, 6)
    model.hidden_cached(draft[:, 1:], starts[:, None] + places[1:], cache, 9)
    positions = (starts + kept)[:, None] + places
    cache.roll_back(positions[:, 0])
    hidden = model.hidden_cached(tokens.gather(1, positions), positions, cache, 12)
    plain = model.module(input_ids=tokens).logits
    expected = plain.gather(1, positions[..., None].expand(-1, -1, plain.shape[-1]))
    torch.testing.assert_close(model.logits(hidden), expected, **rounding(architecture))


@torch.no_grad()
def test_cache_rows_can_be_repeated_and_dropped(architecture: str) -> None:
    model = as_language_model(make_model(architecture, seed=4))
    tokens = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    cache = model.prefill(tokens[:, :6].tolist())
    rows = torch.tensor([1, 1, 0])
    cache.select(rows)
    hidden = model.hidden_cached(tokens[rows, 6:], torch.tensor([[6, 7]]).expand(3, 2), cache, 8)
    torch.testing.assert_close(
        model.logits(hidden), model.module(input_ids=tokens[rows]).logits[:, 6:], **rounding(architecture)
    )
