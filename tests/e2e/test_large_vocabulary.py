"""The vocabulary of Qwen3.5, 248,320 words, through losses, policies and a whole run of a tiny hybrid model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.objectives import objective_of
from tests.support.quick_run import metrics_of
from tests.support.tiny_models import make_model
from tests.support.tiny_run import SPECIAL, make_tokenizer, write_run_file
from tutelage.divergences import ForwardKL, JensenShannon, ReverseKL, SampledReverseKL
from tutelage.kernels import Tiling
from tutelage.losses import DistributionLoss, TokenLoss
from tutelage.policies import (
    FixedBlend,
    Interleaved,
    Mixture,
    Policy,
    Student,
    Teacher,
    TeacherPrefix,
    Temperature,
    TrustRegion,
)
from tutelage.rollout import PairedEngine
from tutelage.types import Batch, Prompt, Rollout

pytestmark = [pytest.mark.sweeps, pytest.mark.long]

VOCABULARY, STOP = 248_320, 248_046
WIDTH: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
LOSSES: list[DistributionLoss | TokenLoss] = [
    ReverseKL(support="full"),
    ForwardKL(support="full"),
    JensenShannon(support="full"),
    ReverseKL(top_k=16),
    ReverseKL(top_k=16, rest="renormalised"),
    SampledReverseKL(),
]
POLICIES: list[Policy] = [
    Student(),
    Teacher(),
    TrustRegion(kl_radius=0.05),
    FixedBlend(blend=0.4),
    Mixture(weight=0.4),
    Interleaved(top_k=20, teacher_temperature=0.5),
    Temperature(temperature=0.7),
    TeacherPrefix(num_tokens=2),
]
PROMPTS = [Prompt([1, 200_000]), Prompt([3], teacher_tokens=[248_319, 5, 6])]


@pytest.fixture(scope="module")
def engine() -> PairedEngine:
    student, teacher = (
        make_model("qwen3_5", vocab_size=VOCABULARY, stop_ids=STOP, seed=seed, **WIDTH) for seed in (1, 2)
    )
    return PairedEngine(student, teacher, support_size=16, draft_length=3)


@pytest.fixture(scope="module")
def rollouts(engine: PairedEngine) -> list[Rollout]:
    return engine.score(engine.generate(TrustRegion(0.05), PROMPTS, max_new_tokens=4, num_samples=2))


def gradient(engine: PairedEngine, rollouts: list[Rollout], loss: Any, form: str) -> tuple[float, dict[str, Tensor]]:
    module = engine.student.module
    module.zero_grad(set_to_none=True)
    value = objective_of(engine.models, loss, form=form).backward(Batch(rollouts)).loss
    return value, {name: weights.grad for name, weights in module.named_parameters() if weights.grad is not None}


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_tiles_have_the_gradients_of_whole_logits(
    engine: PairedEngine, rollouts: list[Rollout], loss: DistributionLoss | TokenLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 248,320 columns in tiles of 50,000, against autograd through whole rows; recurrent layers are in float32."""
    value, expected = gradient(engine, rollouts, loss, "chunked")
    assert math.isfinite(value) and value != 0

    def fitting(view: Any, hidden_ND: Tensor, entry_bytes: int, *, keeps: bool, whole_rows: bool = False) -> Tiling:
        return Tiling(5, view.size if whole_rows else 50_000, keeps)

    monkeypatch.setattr(Tiling, "fitting", fitting)
    for form in ("tiled", "recomputed"):
        tiled, found = gradient(engine, rollouts, loss, form)
        assert tiled == pytest.approx(value, rel=1e-9)
        assert found.keys() == expected.keys()
        for name, other in expected.items():
            torch.testing.assert_close(found[name], other, rtol=0, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_tokens_have_the_probability_that_whole_forwards_give_them(engine: PairedEngine, policy: Policy) -> None:
    """Drafted, judged, replaced and rolled back; each by the distribution that plain forwards over its prefix make."""
    rollouts = engine.generate(policy, PROMPTS, max_new_tokens=6, num_samples=2, seed=4)
    for rollout in rollouts:
        size = len(rollout)
        logits = []
        for model, prompt in (
            (engine.student, rollout.prompt_tokens),
            (engine.teacher, rollout.tokens_for_teacher),
        ):
            with torch.no_grad():
                whole = model.module(input_ids=torch.tensor([[*prompt, *rollout.response_tokens]])).logits[0]
            logits.append(engine.vocabulary.shared_logits(whole[-size - 1 : -1]))
        behaviour = policy.propose(*logits, torch.arange(size))
        expected = behaviour.logprobs_of(torch.tensor(rollout.response_tokens))
        torch.testing.assert_close(
            rollout.behaviour_logprobs, expected.to(rollout.behaviour_logprobs), rtol=0, atol=2e-3
        )
    if policy == Teacher():
        assert any(bool(rollout.replaced.any()) for rollout in rollouts), "something was taken back"


@pytest.mark.runs
@pytest.mark.timeout(900)  # on a busy machine reading a tokenizer of this size takes long
def test_a_run_with_drafts(tmp_path: Path) -> None:
    """Two steps of `train` in tiles; 320 rows of the embedding tables belong to no token, as in released models."""
    path = write_run_file(tmp_path)
    tokenizer = make_tokenizer(extra=tuple(f"Ġw{i}" for i in range(VOCABULARY - 320 - 256 - len(SPECIAL))))
    assert len(tokenizer) == VOCABULARY - 320
    stop = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    shape = {**WIDTH, "max_position_embeddings": 2048, "dtype": torch.float32}
    for seed, role in enumerate(("student", "teacher")):
        model = make_model("qwen3_5", vocab_size=VOCABULARY, stop_ids=stop, seed=seed, **shape)
        model.save_pretrained(tmp_path / role)
        tokenizer.save_pretrained(tmp_path / role)
    records = metrics_of(
        path, tmp_path / "out", "steps=2", "policy.kl_radius=0.05", "rollout.draft_length=3",
        "rollout.prompts_per_step=1", 'divergence={name="reverse_kl", support="full"}', "runtime.loss=tiled",
    )  # fmt: skip
    assert len(records) == 2
    for record in records:
        assert math.isfinite(record["loss"]) and record["loss"] > 0 and record["grad_norm"] > 0
        assert record["logprob_mismatch"] < 1e-3
        assert 0 < record["acceptance_rate"] <= 1
