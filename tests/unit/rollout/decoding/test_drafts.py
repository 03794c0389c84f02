"""The rule that makes a draft of p a sample of mu, added up over everything that can happen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tutelage.policies import Behaviour
from tutelage.rollout.decoding import drafts

NUM_STRATA = 20_000


def some_rows(seed: int) -> tuple[Tensor, Tensor]:
    """log p and log mu of 6 tokens, some of them impossible on either side."""
    logits = 2 * torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[0, 4] = logits[1, 1] = -torch.inf
    student_V, behaviour_V = logits.log_softmax(-1)
    return student_V, behaviour_V


@pytest.mark.parametrize("seed", range(5))
def test_a_kept_or_replaced_draft_has_the_law_of_mu(seed: int) -> None:
    """Every draft by its probability, beside every stratum of the number that judges it: mu up to a stratum or two."""
    student_V, behaviour_V = some_rows(seed)
    keeps_S = (torch.arange(NUM_STRATA).double() + 0.5) / NUM_STRATA
    law_V = torch.zeros(6).double()
    for draft in range(6):
        rows = (Behaviour(row_V.expand(NUM_STRATA, 1, -1)) for row_V in (student_V, behaviour_V))
        verdict = drafts.judge_drafts(*rows, torch.full((NUM_STRATA, 1), draft), keeps_S[:, None])
        found_V = verdict.tokens_BL[:, 0].bincount(minlength=6).double() / NUM_STRATA
        law_V += student_V[draft].exp() * found_V
        assert verdict.lengths_B.eq(1).all()
        # A refused draft is never put back, so what is not the draft is what was replaced.
        assert torch.equal(verdict.tokens_BL != draft, verdict.replaced_BL)
    torch.testing.assert_close(law_V, behaviour_V.exp(), rtol=0, atol=6 / NUM_STRATA)


def test_a_draft_stands_up_to_its_first_refused_token() -> None:
    """Each place is judged by its own number, and what a place becomes does not depend on those behind it."""
    generator = torch.Generator().manual_seed(0)
    rows_BLV = torch.randn(2, 4000, 3, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    drafts_BL = torch.randint(0, 6, (4000, 3), generator=generator)
    keeps_BL = torch.rand(4000, 3, generator=generator, dtype=torch.float64)
    whole = drafts.judge_drafts(*map(Behaviour, rows_BLV), drafts_BL, keeps_BL)
    alone = [
        drafts.judge_drafts(
            *(Behaviour(row_BLV[:, [place]]) for row_BLV in rows_BLV), drafts_BL[:, [place]], keeps_BL[:, [place]]
        )
        for place in range(3)
    ]
    replaced_BL = torch.cat([verdict.replaced_BL for verdict in alone], 1)
    is_before_BL = (replaced_BL.cumsum(1) - replaced_BL.long()) == 0
    assert torch.equal(whole.lengths_B, is_before_BL.sum(1))
    assert torch.equal(whole.replaced_BL, replaced_BL & is_before_BL)
    expected_BL = torch.cat([verdict.tokens_BL for verdict in alone], 1)
    assert torch.equal(whole.tokens_BL[is_before_BL], expected_BL[is_before_BL])
    assert whole.lengths_B.unique().tolist() == [1, 2, 3]


def test_a_rounding_difference_keeps_the_draft() -> None:
    """mu below p by one bit at the draft and nowhere above it: refused, but nothing is left to draw from."""
    student = torch.tensor([[[0.5, 0.5]]]).log()
    behaviour = student.clone()
    behaviour[0, 0, 0] = torch.nextafter(behaviour[0, 0, 0], torch.tensor(-1.0))
    almost_one = torch.tensor([[1 - 2.0**-53]]).double()
    verdict = drafts.judge_drafts(Behaviour(student), Behaviour(behaviour), torch.tensor([[0]]), almost_one)
    assert verdict.tokens_BL.tolist() == [[0]] and verdict.lengths_B.tolist() == [1]
