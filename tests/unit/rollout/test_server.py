"""Servers as the code sees them, played by a thread: what is sent, what is made of the answer, how waiting ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_model
from tests.fake_server import Answer, Fake, vllm_of
from tests.rollouts import rollout_of
from tutelage.distributions import normalise, tail_logprobs
from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import LanguageModel, Vocabulary, align, as_language_model
from tutelage.policies import Student, Teacher, Temperature
from tutelage.rollout import PairedEngine, ServedTeacher, ServedVLLM, Server, VLLMEngine, VLLMSettings, server
from tutelage.rollout.scoring import response_hidden
from tutelage.types import Prompt


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Fake]]:
    """Start fakes; pauses between retries are remembered in `pauses` and not waited for."""
    monkeypatch.setenv("no_proxy", "*")
    started: list[Fake] = []

    def start(answer: Answer) -> Fake:
        started.append(Fake(answer))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(server, "_pause", lambda seconds, stopped: waited.append(seconds))
    return waited


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_what_passes_is_asked_again_with_growing_pauses(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    codes = iter([503, 500, 429, 200])
    fake = play(lambda path, body: (next(codes), {"path": path, **body}))
    assert Server(fake.url + "/v1/").post("/v1/x", {"a": 1}) == {"path": "/v1/x", "a": 1}
    assert pauses == [1, 2, 4] and len(fake.asked) == 4


def test_a_refusal_is_said_at_once_in_the_servers_words(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    fake = play(lambda *_: (400, {"error": {"message": "too many\nlogprobs."}}))
    with pytest.raises(
        ServerError, match=r"/v1/x refuses a request \(400: too many logprobs\).*correct teacher\.server"
    ):
        Server(fake.url, key="teacher.server").post("/v1/x")
    assert pauses == [] and len(fake.asked) == 1


def test_a_server_that_is_gone_is_given_up_with_the_figures(
    play: Callable[[Answer], Fake], pauses: list[float]
) -> None:
    fake = play(lambda *_: (200, {}))
    fake.close()
    gone = Server(fake.url, retries=6, timeout_seconds=5)
    with pytest.raises(ServerError, match=r"gave no answer: asked 7 times, at most 5 seconds each, last .*refused"):
        gone.get("/v1/models")
    assert pauses == [1, 2, 4, 8, 16, 30]
    assert isinstance(ServerError(), ConnectionError)


def test_one_sending_waits_no_longer_than_its_bound(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    fake = play(lambda *_: (time.sleep(1), (200, {}))[1])
    with pytest.raises(ServerError, match=r"asked once, at most 0\.05 seconds each, last timed out"):
        Server(fake.url, timeout_seconds=0.05, retries=0).get("/v1/models")


def test_an_answer_that_is_cut_off_is_asked_for_again(play: Callable[[Answer], Fake], pauses: list[float]) -> None:
    texts = iter([b'{"a": ', b'{"a": 1}'])
    assert Server(play(lambda *_: (200, next(texts))).url).get("/x") == {"a": 1}
    assert pauses == [1]


def test_many_requests_keep_their_order_and_one_failure_ends_them(
    play: Callable[[Answer], Fake], pauses: list[float]
) -> None:
    fake = play(lambda _, body: (200 if body["i"] < 50 else 400, body))
    asked = Server(fake.url, most_at_once=4)
    assert asked.post_all("/x", [{"i": i} for i in range(20)]) == [{"i": i} for i in range(20)]
    with pytest.raises(ServerError, match="refuses"):
        asked.post_all("/x", [{"i": 50}] + [{"i": i} for i in range(20)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "localhost:8000"}, r"vllm\.server is 'localhost:8000'; expected an address"),
        ({"url": "http://a", "timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"url": "http://a", "retries": -1}, "retries -1"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Server(**fields)


# --- a vLLM that is our own student behind HTTP ---------------------------------------------------------------------


def pair() -> tuple[LanguageModel, LanguageModel, Vocabulary]:
    student = as_language_model(make_model("qwen3", vocab_size=20, stop_ids=7, seed=1), "student")
    teacher = as_language_model(make_model("qwen3", vocab_size=20, stop_ids=[8, 7], seed=2), "teacher")
    return student, teacher, align(student, teacher)


def engine_on(fake: Fake, student: LanguageModel, vocabulary: Vocabulary, folder: Path, **fields: Any) -> VLLMEngine:
    settings = VLLMSettings(tolerance=1e-6, tolerance_max=1e-5, weights_folder=str(folder), **fields)
    return VLLMEngine(
        student, vocabulary, ServedVLLM(Server(fake.url, most_at_once=1)), settings=settings, support_size=4
    )


def test_the_student_takes_over_where_the_policy_is_the_student(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    student, teacher, vocabulary = pair()
    fake = play(vllm_of(student))
    handed = engine_on(fake, student, vocabulary, tmp_path / "weights")
    engine = PairedEngine(student, teacher, vocabulary=vocabulary, support_size=4, student_engine=handed)
    paired = engine.generate(Teacher(), [[1, 2]], max_new_tokens=3)
    assert fake.asked == [] and paired[0].rescored_logprobs is None
    prompts = [Prompt([1, 2], teacher_tokens=[3, 1, 2]), Prompt([4])]
    rollouts = engine.generate(Student(), prompts, max_new_tokens=12, num_samples=8)
    assert [path for path, _ in fake.asked][:3] == ["/collective_rpc", "/reset_prefix_cache", "/v1/models"]
    assert fake.asked[0][1] == {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "weights")}}
    assert (tmp_path / "weights" / "model.safetensors").is_file()
    finished = [r for r in rollouts if r.finished]
    assert 0 < len(finished) < 16 and all(r.response_tokens[-1] == 7 for r in finished)
    assert all(8 not in r.response_tokens for r in rollouts)
    for r in rollouts:  # both stop ids are one event, which is what our own forward says
        assert r.rescored_logprobs is not None
        torch.testing.assert_close(r.behaviour_logprobs.double(), r.rescored_logprobs, atol=1e-6, rtol=0)
    scored = engine.score(rollouts)
    assert scored[0].teacher_prompt_tokens == [3, 1, 2] and scored[0].is_scored
    # The same seeds whatever the batch; the weights are handed over once.
    again = engine.generate(Student(), [Prompt([4], stream=1)], max_new_tokens=12, num_samples=8)
    assert [r.response_tokens for r in again] == [r.response_tokens for r in rollouts[8:]]
    assert [path for path, _ in fake.asked].count("/collective_rpc") == 1


def test_an_update_is_handed_over_and_a_difference_is_refused(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    student, _, vocabulary = pair()
    fake = play(vllm_of(student))
    engine = engine_on(fake, student, vocabulary, tmp_path)
    ask: dict[str, Any] = {"max_new_tokens": 4, "num_samples": 1, "seed": 0, "step": 0}
    engine.generate(Student(), [Prompt([1])], **ask)
    with torch.no_grad():
        next(iter(student.module.parameters())).add_(0.01)
    engine.generate(Student(), [Prompt([1])], **ask)
    assert [path for path, _ in fake.asked].count("/reset_prefix_cache") == 2
    for wrong in (vllm_of(student, shift=1e-3), vllm_of(pair()[1])):
        other = engine_on(play(wrong), student, vocabulary, tmp_path)
        with pytest.raises(ServerError, match=r"sampled tokens differ from ours by .* vllm\.tolerance allows 1e-06"):
            other.generate(Student(), [Prompt([1])], **ask)


def test_other_temperatures_and_no_statistics(play: Callable[[Answer], Fake], tmp_path: Path) -> None:
    student, _, vocabulary = pair()
    fake = play(vllm_of(student))
    engine = engine_on(fake, student, vocabulary, tmp_path)
    ask: dict[str, Any] = {"max_new_tokens": 4, "num_samples": 1, "seed": 0, "step": 0}
    (rollout,) = engine.generate(Temperature(0.0), [Prompt([1])], records_statistics=False, **ask)
    assert rollout.support_ids is None and rollout.behaviour_logprobs.tolist() == [0.0] * len(rollout)
    assert fake.asked[-1][1]["temperature"] == 0 and fake.asked[-1][1]["stop_token_ids"] == [7, 8]
    with pytest.raises(ServerError, match="logprobs-mode processed_logprobs"):  # this one samples at 1
        engine.generate(Temperature(0.5), [Prompt([1])], **ask)
    with pytest.raises(ConfigurationError, match=r"the policy Teacher\(.*\) asks for more"):
        engine.generate(Teacher(), [Prompt([1])], **ask)


# --- a teacher behind HTTP -------------------------------------------------------------------------------------------


def test_a_served_teacher_tells_what_a_local_one_would(play: Callable[[Answer], Fake]) -> None:
    """Its own top K behind every token, both stop ids as one event, and the sampled tokens' log-probabilities."""
    student, teacher, vocabulary = pair()
    local = PairedEngine(student, teacher, vocabulary=vocabulary, support_size=4)
    rollouts = local.generate(
        Student(), [Prompt([1, 2], teacher_tokens=[3, 1, 2]), Prompt([4])], max_new_tokens=12, num_samples=6
    )
    fake = play(vllm_of(teacher))
    served = PairedEngine(
        student,
        vocabulary=vocabulary,
        support_size=4,
        served_teacher=ServedTeacher(Server(fake.url, most_at_once=1), vocabulary, 5),
    )
    assert any(r.finished for r in rollouts) and not served.models.teachers
    for told, known in zip(served.score(rollouts), local.score(rollouts), strict=True):
        assert told.is_scored and told.teacher.top.support_ids is not None and told.teacher_logprobs is not None
        hidden = response_hidden(teacher, [(known.tokens_for_teacher, known.response_tokens)])
        shared = normalise(vocabulary.shared_logits(teacher.logits(hidden))).detach()
        top = shared.topk(5, dim=-1)
        # A stop id that is not among the six told stays in the tail; the event's other id is then all of it.
        is_whole = (told.teacher.top.support_ids.long() == top.indices).all(-1)
        assert is_whole.float().mean() > 0.8
        whole = is_whole & ~(top.indices == 7).any(-1)
        torch.testing.assert_close(told.teacher.top.logprobs[whole].double(), top.values[whole], atol=1e-5, rtol=0)
        tails = tail_logprobs(shared, top.indices)
        torch.testing.assert_close(told.teacher.top.tail_logprobs[whole].double(), tails[whole], atol=1e-4, rtol=0)
        ordinary = torch.tensor(known.response_tokens) != 7
        assert known.teacher_logprobs is not None
        torch.testing.assert_close(
            told.teacher_logprobs[ordinary].double(), known.teacher_logprobs[ordinary], atol=1e-5, rtol=0
        )


def test_stop_ids_that_are_told_are_one_event_and_padding_is_none() -> None:
    vocabulary = Vocabulary(20, (7, 8), 7, (3,))
    # Of 32 rows 20 are tokens; the last place's tail is lost in rounding.
    places = [None, {"8": 0.5, "7": 0.25, "1": 0.125, "3": 0.0625, "25": 0.03}]
    places += [{"8": 0.6, "1": 0.3, "2": 0.1, "4": 1e-12}]
    told = [p and {i: {"logprob": math.log(mass)} for i, mass in p.items()} for p in places]
    rollout = rollout_of([4], [1, 1], torch.zeros(2), torch.zeros(2))
    served = ServedTeacher(Server("http://a"), vocabulary, 3, num_rows=32)
    scored = served._scored(rollout, {"choices": [{"prompt_logprobs": told}]}, "m", 4)
    assert scored.teacher.top.support_ids is not None and scored.teacher.top.logprobs is not None
    assert scored.teacher.top.support_ids.tolist() == [[7, 1, 7], [7, 1, 2]]
    expected = torch.tensor([[0.75, 0.125, 0.0], [0.6, 0.3, 0.1]])
    torch.testing.assert_close(scored.teacher.top.logprobs.exp(), expected)
    assert scored.teacher.top.tail_logprobs is not None
    assert scored.teacher.top.tail_logprobs.exp().tolist() == pytest.approx([0.125, 2**-24], rel=1e-3)


def test_a_server_that_is_no_teacher_is_refused(play: Callable[[Answer], Fake]) -> None:
    _, teacher, vocabulary = pair()
    rollout = rollout_of([4], [1, 1], torch.zeros(2), torch.zeros(2))
    models = {"data": [{"id": "m"}]}
    plain = play(lambda path, _: (200, models if path == "/v1/models" else {"choices": [{"text": ""}]}))
    with pytest.raises(ServerError, match="log-probabilities of 0 tokens of a prompt of 3"):
        ServedTeacher(Server(plain.url), vocabulary, 4).score([rollout])
    with pytest.raises(ServerError, match="serves no model"):
        ServedTeacher(Server(play(lambda *_: (200, {"data": []})).url), vocabulary, 4).score([rollout])
    short = ServedTeacher(Server(play(vllm_of(teacher)).url), vocabulary, 4)
    short.check([1, 2], 63)
    with pytest.raises(ServerError, match="may have 64 tokens, and .* reads 64 less the one"):
        short.check([1, 2], 64)


# --- the exchange before the first step ------------------------------------------------------------------------------


def test_a_teacher_server_is_compared_before_the_first_step(play: Callable[[Answer], Fake]) -> None:
    """One short prompt, sent twice: with the last id of the vocabulary, and the same tokens for a text."""
    _, teacher, vocabulary = pair()
    honest = vllm_of(teacher)
    fake = play(honest)
    served = ServedTeacher(Server(fake.url), vocabulary, 4)
    assert served.check([1, 2, 8, 4], 20).name == "m"
    prompts = [body["prompt"] for path, body in fake.asked if path == "/v1/completions"]
    assert prompts == [[1, 2, 8, 4, 19]] * 2
    served.check([1] * 50, 63)
    assert len(fake.asked[-1][1]["prompt"]) == 32

    def cut_into(tokens: Any) -> Answer:
        return lambda path, body: (200, tokens) if path == "/tokenize" else honest(path, body)

    for told in ({"tokens": [5, 6]}, {"count": 2}, None):  # the same, and servers that do not tell
        ServedTeacher(Server(play(cut_into(told)).url), vocabulary, 4).check([1, 2], 20, ("text", [5, 6]))
    with pytest.raises(ServerError, match=r"cuts a text into other tokens than teacher\.path's tokenizer"):
        ServedTeacher(Server(play(cut_into({"tokens": [5, 7]})).url), vocabulary, 4).check([1], 20, ("text", [5, 6]))


def test_a_server_without_the_route_for_texts_is_no_other_server(play: Callable[[Answer], Fake]) -> None:
    _, teacher, vocabulary = pair()
    honest = vllm_of(teacher)
    fake = play(lambda path, body: (404, {}) if path == "/tokenize" else honest(path, body))
    ServedTeacher(Server(fake.url), vocabulary, 4).check([1, 2], 20, ("text", [5, 6]))


def test_two_models_at_one_address_are_noticed(play: Callable[[Answer], Fake]) -> None:
    student, teacher, vocabulary = pair()
    models = [vllm_of(student), vllm_of(teacher)]
    fake = play(lambda path, body: models[len(fake.asked) % 2](path, body))
    with pytest.raises(ServerError, match=r"was asked the same twice, and its log-probabilities differ by .* nats"):
        ServedTeacher(Server(fake.url, most_at_once=1), vocabulary, 4).check([1, 2, 4, 5], 20)


def test_a_student_server_is_asked_before_the_first_step(play: Callable[[Answer], Fake]) -> None:
    """Is it there, does it hold prompts and answers whole, and does it have the routes that take new weights?"""
    student, _, _ = pair()
    fake = play(vllm_of(student))
    ServedVLLM(Server(fake.url)).check([1, 2], 64)
    assert [path for path, _ in fake.asked][:2] == ["/v1/models", "/reset_prefix_cache"]
    with pytest.raises(ServerError, match="may have 65 tokens, and .* holds 64"):
        ServedVLLM(Server(fake.url)).check([1, 2], 65)
    closed = play(lambda path, body: (404, {}) if path == "/reset_prefix_cache" else vllm_of(student)(path, body))
    with pytest.raises(ServerError, match=r"/reset_prefix_cache refuses a request \(404"):
        ServedVLLM(Server(closed.url)).check([1, 2], 64)
