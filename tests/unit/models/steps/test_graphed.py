"""The captured decode step, without CUDA: the same places and shapes, and the function called in place of a replay."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

from tests.support.adapters import adapted, shake
from tests.support.graph_agreement import (
    CHANGES,
    PROMPTS,
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

pytestmark = pytest.mark.rollouts


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_student_alone(name: str) -> None:
    """Refills, rows that are dropped, caches that grow."""
    student = model(name, 0, "cpu")
    assert_agree(student)
    shapes = shapes_of(student)
    assert {rows for rows, _, _ in shapes} == {4}, "fewer rows than 8 are not worth a graph of their own"
    assert {new for _, new, _ in shapes} == {1} and {slots for _, _, slots in shapes} == {64, 128}


@pytest.mark.parametrize("draft_length", [1, 3, 5])
def test_drafts_that_are_rolled_back(draft_length: int) -> None:
    student, teacher = model("qwen3", 0, "cpu"), model("llama", 1, "cpu")
    assert_agree(student, teacher, draft_length=draft_length)
    assert {new for _, new, _ in shapes_of(teacher)} <= {1, 2, 4, 6}
    assert max(new for _, new, _ in shapes_of(teacher)) == {1: 1, 3: 4, 5: 6}[draft_length]


def test_rows_are_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "MIN_ROWS", 1)
    student = model("qwen3", 0, "cpu")
    assert_agree(student, max_rows=10)
    rows = {rows for rows, _, _ in shapes_of(student)}
    assert {10, 4, 2, 1} <= rows <= {10, 8, 4, 2, 1}


def test_members_of_a_fused_teacher_are_captured_each() -> None:
    members = [model("qwen3", seed, "cpu") for seed in (1, 2)]
    assert_agree(model("qwen3", 0, "cpu"), FusedTeacher(members, FixedFusion((0.5, 0.5))), draft_length=2)
    assert all(shapes_of(member) for member in members)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_weights_that_change(change) -> None:
    """In place they are seen; where they have moved, all is captured again."""
    student = model("qwen3", 0, "cpu")
    before = [rollout.response_tokens for rollout in answers(student, None, Student())]
    spare = step_of(student)._spare
    assert spare is not None
    captured = spare.captured
    change(student)
    assert_agree(student)
    assert before != [rollout.response_tokens for rollout in answers(student, None, Student())]
    assert (spare.captured is captured) == (change is CHANGES["in place"])


def test_the_next_rollout_takes_over_memory_and_graphs() -> None:
    student = model("qwen3", 0, "cpu")
    answers(student, None, Student())
    spare = step_of(student)._spare
    assert spare is not None
    captured, places = dict(spare.captured.replays), [tensor.data_ptr() for tensor in spare.tensors()]
    answers(student, None, Student())
    answers(student, None, Student(), max_rows=2, max_new_tokens=5)
    assert step_of(student)._spare is spare and [tensor.data_ptr() for tensor in spare.tensors()] == places
    again = spare.captured.replays
    assert captured.items() <= again.items() and {shape[0] for shape in again.keys() - captured.keys()} <= {4}
    answers(student, None, Student(), max_rows=6)  # does not fit
    assert step_of(student)._spare is not spare
    assert_agree(student)


def test_what_a_rollout_left_does_not_reach_the_next() -> None:
    """A masked slot has weight 0, and 0 · NaN would be NaN."""
    student = model("qwen3", 0, "cpu")
    expected = [rollout.response_tokens for rollout in answers(student, None, Student())]
    spare = step_of(student)._spare
    assert spare is not None
    for states in spare.tensors():
        states.fill_(float("nan"))
    assert expected == [rollout.response_tokens for rollout in answers(student, None, Student())]


def test_too_much_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    student = model("qwen3", 0, "cpu")
    monkeypatch.setattr(graphed, "kept_bytes", lambda device: 1000)
    assert_agree(student)
    assert step_of(student)._spare is None
    monkeypatch.undo()
    answers(student, None, Student())
    memory = weakref.ref(step_of(student)._spare)
    assert memory() is not None
    del student
    gc.collect()
    assert memory() is None


def test_a_table_of_rotations_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "MIN_POSITIONS", 8)
    student = model("qwen3", 0, "cpu")
    student._own_forward.rotations(1)
    answers(student, None, Student(), max_new_tokens=4)
    spare = step_of(student)._spare
    assert spare is not None
    captured = spare.captured
    student._own_forward.rotations(1000)
    assert_agree(student, max_new_tokens=4)
    assert spare.captured is not captured


def test_two_models_take_turns() -> None:
    assert_models_take_turns("cpu", 2)


def test_a_cache_of_another_step_is_worked_on_as_it_is() -> None:
    student = LanguageModel(make_model("qwen3"))
    with torch.no_grad():
        cache = student.prefill(PROMPTS)
        student.decode_step = "graphed"
        tokens_B1, positions_B1 = torch.tensor([[5]] * 5), torch.tensor([[len(prompt)] for prompt in PROMPTS])
        found = student.hidden_cached(tokens_B1, positions_B1, cache, 7)
        student.decode_step = None
        expected = student.hidden_cached(tokens_B1, positions_B1, student.prefill(PROMPTS), 7)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_adapter_is_captured_as_it_is() -> None:
    """Low-rank factors are weights like others; DoRA, which keeps norms of whole weights, is left eager."""
    for method in ("lora", "dora"):
        student = adapted(make_model("qwen3", seed=0, stop_ids=7, dtype=torch.float32), method, rank=2, alpha=32)
        student.stop_ids, student.decode_step = (7,), "graphed"
        assert student.trainable.only_multiplies == (method == "lora")
        if method == "lora":
            shake(student, size=0.1)
            assert_agree(student)


def test_what_is_not_captured_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is compiled on CUDA, where that would take minutes."""
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda"))
    assert LanguageModel(make_model("qwen3"))._step_name == "graphed"
    assert LanguageModel(make_model("qwen3"), compile=True)._step_name == "graphed"
    other = LanguageModel(make_model("gemma2"), name="other")
    with pytest.warns(UserWarning, match="decode steps of other are not captured in CUDA graphs") as said:
        assert [other._step_name, other._step_name] == ["eager", "eager"]
    assert len(said) == 1


def test_a_policy_of_both_models_over_two_engines() -> None:
    """Answers of one engine lie in memory that the next one takes; nothing of them is left."""
    student, teacher = model("qwen3", 0, "cpu"), model("qwen3", 1, "cpu")
    first = answers(student, teacher, TrustRegion(0.05), draft_length=2)
    answers(student, None, Student(), max_rows=3)
    again = answers(student, teacher, TrustRegion(0.05), draft_length=2)
    assert [rollout.response_tokens for rollout in again] == [rollout.response_tokens for rollout in first]


class Pretended:
    """CUDA graphs, pools and streams without CUDA: capturing calls the function, replaying calls it again.

    As in PyTorch, a pool whose last graph is gone is not taken again, nor one with which a capture did not end.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, problem: str = "") -> None:
        self.log: list[str] = []
        self.problem = problem
        self.users: dict[object, int] = {}
        pretended = self

        class Graph:
            pool: object = None

            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                if pretended.users.get(pool, 1) <= 0:
                    raise RuntimeError("use_count > 0")
                pretended.users[pool] = pretended.users.get(pool, 0) + 1
                self.pool = pool
                pretended.log.append(f"begin {capture_error_mode}")

            def capture_end(self) -> None:
                pretended.log.append("end")
                if pretended.problem and pretended.log.count("end") > 1:  # the first keeps the pool
                    pretended.users[self.pool] = -1
                    raise RuntimeError(pretended.problem)

            def replay(self) -> None:
                pretended.log.append("replay")
                replay = pretended.replay
                replay._hidden_BTE.copy_(replay._decode(replay.tokens_BT, replay.positions_BT))

            def __del__(self) -> None:
                pretended.users[self.pool] = pretended.users.get(self.pool, 0) - 1

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(graphed, "_stream", lambda device: Stream())
        graphed._pool.cache_clear()
        self.replay = self.new_replay()

    def new_replay(self) -> graphed.CapturedReplay:
        return graphed.CapturedReplay(self.decode, 4, 2, torch.device("cpu"))

    def decode(self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        self.log.append("call")
        return (100 * tokens_BT + positions_BT)[..., None].double()


@pytest.fixture
def no_pool() -> Iterator[None]:
    """What was pretended is forgotten."""
    yield
    graphed._pool.cache_clear()


def test_a_shape_is_called_then_captured_then_replayed(monkeypatch: pytest.MonkeyPatch, no_pool: None) -> None:
    pretended = Pretended(monkeypatch)
    results = []
    for number in range(4):
        tokens_BT, positions_BT = torch.full((3, 1), number), torch.arange(3)[:, None]
        results.append(pretended.replay(tokens_BT, positions_BT))
    for number, result in enumerate(results):  # each a copy, which no later replay writes over
        assert result.tolist() == [[[100.0 * number + row]] for row in range(3)]
    own = ["begin thread_local", "call", "end"]
    assert pretended.log == ["call", "begin thread_local", "end", *own, *["replay", "call"] * 3]


PLACE = torch.zeros(1, 1, dtype=torch.int64)


def test_a_pool_outlives_its_graphs(monkeypatch: pytest.MonkeyPatch, no_pool: None) -> None:
    """A cache that grows takes all graphs with it; those after are captured, too."""
    pretended = Pretended(monkeypatch)
    for _ in range(3):
        pretended.replay = pretended.new_replay()
        for number in range(3):
            assert pretended.replay(PLACE + number, PLACE).item() == 100 * number
        assert pretended.replay._graph is not None


def test_a_capture_that_fails_leaves_the_step_as_it_was(monkeypatch: pytest.MonkeyPatch, no_pool: None) -> None:
    """And does not stand in the way of other shapes."""
    pretended = Pretended(monkeypatch, "operation not permitted")
    assert pretended.replay(PLACE + 1, PLACE).item() == 100
    with pytest.warns(UserWarning, match="was not captured, so it is slower: operation not permitted"):
        assert pretended.replay(PLACE + 2, PLACE).item() == 200
    assert pretended.replay(PLACE + 3, PLACE).item() == 300
    assert pretended.log[-5:] == ["begin thread_local", "call", "end", "call", "call"]
    pretended.problem, pretended.replay = "", pretended.new_replay()
    for number in range(3):
        assert pretended.replay(PLACE + number, PLACE).item() == 100 * number
    assert pretended.replay._graph is not None


def test_the_first_of_two_problems_is_told(monkeypatch: pytest.MonkeyPatch, no_pool: None) -> None:
    """A capture in which something failed cannot be ended either."""
    pretended = Pretended(monkeypatch, "capture is invalidated")
    pretended.replay(PLACE, PLACE)

    def failing(tokens_BT: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="slower: out of memory"):
        patch.setattr(pretended.replay, "_decode", failing)
        with pytest.raises(RuntimeError, match="out of memory"):  # as it is, out of a capture
            pretended.replay(PLACE, PLACE)
