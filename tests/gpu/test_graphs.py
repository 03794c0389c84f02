"""Decode steps captured in CUDA graphs: the tokens of eager ones, whatever happens to rows, caches and weights."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.gpu import NEEDS_CUDA
from tests.support.graph_agreement import (
    CHANGES,
    answers,
    assert_agree,
    assert_models_take_turns,
    model,
    shapes_of,
    step_of,
)
from tests.support.tiny_models import make_model
from tutelage.models import FixedFusion, FusedTeacher, LanguageModel
from tutelage.models.steps import graphed
from tutelage.policies import Student, TrustRegion
from tutelage.rollout.decoding import Decoding, rounds

pytestmark = NEEDS_CUDA


@pytest.fixture(autouse=True)
def no_refusals() -> Iterator[None]:
    """A capture that fails leaves the step eager with a warning; here that is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def num_graphs(student: LanguageModel) -> int:
    """Shapes that were captured, and not only run once."""
    spare = step_of(student)._spare
    return 0 if spare is None else sum(r._graph is not None for r in spare.captured.replays.values())


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_student_alone(name: str) -> None:
    student = model(name, 0, "cuda")
    assert_agree(student)
    assert 1 < num_graphs(student) <= len(shapes_of(student))


@pytest.mark.parametrize("draft_length", [1, 3, 5])
def test_drafts_that_are_rolled_back(draft_length: int) -> None:
    assert_agree(model("qwen3", 0, "cuda"), model("llama", 1, "cuda"), draft_length=draft_length)


def test_rows_are_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "MIN_ROWS", 1)
    assert_agree(model("qwen3", 0, "cuda"), max_rows=10)


def test_members_of_a_fused_teacher_are_captured_each() -> None:
    members = [model("qwen3", seed, "cuda") for seed in (1, 2)]
    assert_agree(model("qwen3", 0, "cuda"), FusedTeacher(members, FixedFusion((0.5, 0.5))), draft_length=2)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_weights_that_change(change: Callable[[LanguageModel], None]) -> None:
    student = model("qwen3", 0, "cuda")
    for _ in range(3):
        assert_agree(student)
        change(student)
    assert_agree(student)


def test_two_models_take_turns_in_one_pool() -> None:
    assert_models_take_turns("cuda", 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_in_a_narrow_type(dtype: torch.dtype) -> None:
    """Tokens may differ after a rounding that decides a draw; hidden states of one step must not differ by more."""
    found = []
    for name in ("eager", "graphed"):
        student = model("qwen3", 0, "cuda", dtype)
        student.decode_step = name
        cache = student.new_cache(3, 8, 32)
        tokens = torch.tensor([[5, 6], [7, 8], [9, 9]], device="cuda")
        with torch.no_grad():
            for start in range(4):  # the second call captures, the others replay
                positions = torch.tensor([[start, start + 1]] * 3, device="cuda")
                hidden = student.hidden_cached(tokens, positions, cache, start + 2)
        found.append(hidden.float())
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert float((found[0] - found[1]).abs().max()) <= tolerance * float(found[0].abs().max())


def test_captured_is_what_a_model_on_cuda_does() -> None:
    """And one that computes through its own forward says once that it is not."""
    student = LanguageModel(make_model("qwen3", stop_ids=7).to("cuda"), stop_ids=(7,))
    assert student._step_name == "graphed"
    other = LanguageModel(make_model("gemma2", stop_ids=7).to("cuda"), name="other")
    with pytest.warns(UserWarning, match="decode steps of other are not captured"):
        assert other._step_name == "eager"
    assert other._step_name == "eager"


@pytest.mark.parametrize("draft_length", [1, 3])
def test_a_round_waits_for_nothing(draft_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads a round's outcome one round late; the tokens are those of reading it at once."""
    student, teacher = model("qwen3", 0, "cuda"), model("llama", 1, "cuda")

    def tokens() -> list[list[int]]:
        return [each.response_tokens for each in answers(student, teacher, TrustRegion(0.05), draft_length)]

    late, begin = tokens(), Decoding._begin_round

    def watched(decoding: Decoding) -> None:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
                torch.cuda.set_sync_debug_mode("error")
            begin(decoding)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "_begin_round", watched)
        assert tokens() == late
    monkeypatch.setattr(rounds, "rounds_late", lambda device: 0)
    assert tokens() == late


def test_autocast_decodes_from_copies_in_bfloat16() -> None:
    student = model("qwen3", 0, "cuda", torch.float32, autocast=torch.bfloat16)
    student.decode_step = None
    for _ in range(2):
        answers(student, None, Student())
        assert num_graphs(student)
        CHANGES["in place"](student)


def test_memory_is_returned() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    student = model("qwen3", 0, "cuda")
    answers(student, None, Student())
    assert num_graphs(student)
    del student
    gc.collect()
    torch.cuda.empty_cache()
    # Workspaces of cuBLAS stay, one for the stream on which steps are captured.
    assert torch.cuda.memory_allocated() - before <= 64 * 2**20
