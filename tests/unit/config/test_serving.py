"""Run files with a server in them: what is refused before anything is computed, and what is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_server import Answer, Fake, student_server, vllm_of
from tests.support.tiny_run import make_tokenizer, save_model, write_run_file
from tutelage.config import build_phases, build_run, load_config
from tutelage.config.consistency import check_runtime
from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import load_language_model, load_tokenizer
from tutelage.rollout import PairedEngine
from tutelage.rollout.samplers import ServedVLLM
from tutelage.rollout.servers import server as server_module
from tutelage.runtime import LocalRuntime
from tutelage.training import Observer, train
from tutelage.types import StepResult

OPD = ["policy=student", "divergence.support=teacher_top_k", "divergence.top_k=4", "evaluation.sets=[]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_run_file(folder)
    return folder


@pytest.fixture
def teacher(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """The teacher of the run file as a server."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(server_module, "_pause", lambda seconds, stopped: None)
    path = str(home / "teacher")
    fake = Fake(vllm_of(load_language_model(path, load_tokenizer(path)), context=512))
    yield fake
    fake.close()


Servers = Callable[..., Fake]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """Serves the model of a folder, or answers as it is told."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(server_module, "_pause", lambda seconds, stopped: None)
    started: list[Fake] = []

    def start(model: Path, answer: Answer | None = None) -> Fake:
        loaded = load_language_model(str(model), load_tokenizer(str(model)))
        started.append(Fake(answer or vllm_of(loaded, context=512)))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


def config_of(home: Path, *overrides: str) -> Any:
    return load_config(home / "run.toml", [*overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=student"], r"divergence\.support is 'student_top_k', but a teacher server reports only its own"),
        ([], r"the policy TrustRegion\(.*\) asks the teacher at every token, and a server reads finished answers only"),
        ([*OPD, "weighting=tip"], r"the weighting Tip\(.*\) compares both models on the student's"),
        ([*OPD, 'teacher.experts=["elsewhere"]'], r"teacher\.server is set beside teacher\.experts, with which"),
        ([*OPD, "rollout.engine=sglang"], r"rollout\.engine is 'sglang'; expected one of paired, vllm"),
        ([*OPD, "vllm.memory_share=1.5"], r"vllm\.memory_share is 1\.5; expected a share between 0 and 1"),
        ([*OPD, "vllm.tolerance=0"], r"vllm\.tolerance is 0 and vllm\.tolerance_max 2; expected nats above 0"),
        ([*OPD, "vllm.adress=x"], r"unknown configuration key 'vllm\.adress'"),
    ],
)
def test_what_cannot_work_is_refused(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_phases(config_of(home, "teacher.server=http://localhost:1", *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=student"], r"divergence\.support is 'student_top_k', but a teacher server reports only its own"),
        ([], r"asks the teacher at every token, .*Load every teacher here \(leave its server out\)"),
    ],
)
def test_a_served_route_is_a_served_teacher(home: Path, overrides: list[str], message: str) -> None:
    route = ["teacher.routes.code.path=elsewhere", "teacher.routes.code.server=http://localhost:1"]
    with pytest.raises(ConfigurationError, match=message):
        build_phases(config_of(home, *route, *overrides))
    build_phases(config_of(home, *route, *OPD))


def test_what_a_server_suffices_for_is_accepted(home: Path) -> None:
    server = "teacher.server=http://localhost:1"
    build_phases(config_of(home, server, *OPD, 'weighting={name="tip", selector="entropy"}'))
    build_phases(config_of(home, server, "policy=student", "divergence=trust_split"))


@pytest.mark.runs
def test_a_run_with_a_teacher_server_loads_no_teacher(home: Path, teacher: Fake, tmp_path: Path) -> None:
    """Not even its weights need to be there; the numbers are those of the teacher here."""
    bare = shutil.copytree(home / "teacher", tmp_path / "teacher", ignore=shutil.ignore_patterns("*.safetensors"))
    output = f"output={tmp_path / 'run'}"
    few = [*OPD, "divergence.top_k=258", "steps=2"]  # a random teacher is nearly uniform, and its stop ids far down
    run = build_run(config_of(home, *few, f"teacher.server={teacher.url}", f"teacher.path={bare}", output))
    assert run.models.teachers == {} and run.models.vocabulary.stop_ids == (256, 258)
    train(run, Observer())
    train(build_run(config_of(home, *few, f"output={tmp_path / 'local'}")), Observer())
    served, local = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "local")
    )
    for one, other in zip(served, local, strict=True):
        assert one["response_tokens"] == other["response_tokens"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["teacher_logprob"] == pytest.approx(other["teacher_logprob"], abs=1e-4)


@pytest.mark.runs
@pytest.mark.parametrize("served", [("here", "code"), ("code",), ("here",)], ids=["both", "the route", "the teacher"])
def test_each_teacher_may_be_a_server(home: Path, tmp_path: Path, servers: Servers, served: tuple[str, ...]) -> None:
    """Some prompts have another teacher; the numbers are those of the same two teachers here."""
    other = save_model(tmp_path / "code", make_tokenizer(), padded_size=264, stop_ids=258, seed=9)
    rows = [json.loads(line) for line in (home / "prompts.jsonl").read_text().splitlines()]
    named = [{**row, "teacher": "code" if place % 2 else ""} for place, row in enumerate(rows)]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    common = [*OPD, "divergence.top_k=258", "steps=2", f"data={tmp_path / 'named.jsonl'}"]
    common += [f"teacher.routes.code.path={other}"]
    fakes = {"here": servers(home / "teacher"), "code": servers(other)}
    keys = {"here": "teacher.server", "code": "teacher.routes.code.server"}
    addresses = [f"{keys[name]}={fakes[name].url}" for name in served]

    run = build_run(config_of(home, *common, *addresses, f"output={tmp_path / 'run'}"))
    assert set(run.models.teachers) == {None, "code"} - {{"here": None}.get(name, name) for name in served}
    train(run, Observer())
    train(build_run(config_of(home, *common, f"output={tmp_path / 'local'}")), Observer())
    there, here = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "local")
    )
    for one, another in zip(there, here, strict=True):
        assert one["response_tokens"] == another["response_tokens"]
        assert one["loss"] == pytest.approx(another["loss"], rel=1e-4)
        assert one["teacher_logprob"] == pytest.approx(another["teacher_logprob"], abs=1e-4)
    # A server that comes back elsewhere is the same run.
    moved = [f"{keys[name]}={servers(home / 'teacher' if name == 'here' else other).url}" for name in served]
    output = f"output={tmp_path / 'run'}"
    assert train(build_run(config_of(home, *common, *moved, output, "steps=3"), resume=True), Observer()).step == 3


@pytest.mark.runs
def test_a_wrong_server_of_a_route_is_named_by_its_key(home: Path, tmp_path: Path, servers: Servers) -> None:
    other = save_model(tmp_path / "code", make_tokenizer(), padded_size=264, stop_ids=258, seed=9)
    (tmp_path / "named.jsonl").write_text('{"problem": "1 + 1?", "answer": "2", "teacher": "code"}\n')
    answer = vllm_of(load_language_model(str(other), load_tokenizer(str(other))), context=512)
    wrong = servers(other, lambda path, body: (200, {"tokens": [1]}) if path == "/tokenize" else answer(path, body))
    overrides = [*OPD, f"data={tmp_path / 'named.jsonl'}", f"teacher.routes.code.path={other}"]
    overrides += [f"teacher.routes.code.server={wrong.url}", "rollout.prompts_per_step=1"]
    with pytest.raises(ServerError, match=r"other tokens than teacher\.routes\.code\.path's tokenizer"):
        build_run(config_of(home, *overrides, f"output={tmp_path / 'run'}"))


def test_a_short_server_is_refused_before_the_first_file(home: Path, teacher: Fake, tmp_path: Path) -> None:
    overrides = [*OPD, f"teacher.server={teacher.url}", f"output={tmp_path / 'run'}", "rollout.max_new_tokens=500"]
    with pytest.raises(ServerError, match=r"reads 512 less the one.*lower rollout\.max_new_tokens"):
        build_run(config_of(home, *overrides))
    assert not (tmp_path / "run").exists()


@pytest.mark.runs
def test_a_run_whose_server_dies_is_saved_and_goes_on(home: Path, teacher: Fake, tmp_path: Path) -> None:
    class Kills(Observer):
        def on_step(self, result: StepResult) -> None:
            if result.step == 0:
                teacher.close()

    overrides = [*OPD, "teacher.retries=1", f"output={tmp_path / 'run'}", "steps=3", "checkpoint.every=100"]
    with pytest.raises(
        ServerError, match=r"asked 2 times.*This was after 1 of 3 steps; the run is saved in .*--resume"
    ):
        train(build_run(config_of(home, *overrides, f"teacher.server={teacher.url}")), Kills())
    path = str(home / "teacher")
    again = Fake(vllm_of(load_language_model(path, load_tokenizer(path)), context=512))
    state = train(build_run(config_of(home, *overrides, f"teacher.server={again.url}"), resume=True), Observer())
    again.close()
    assert state.step == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]


def test_the_student_is_handed_to_a_server_where_the_run_file_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    fake = student_server(lambda folder: load_language_model(folder, load_tokenizer(str(home / "student"))))
    overrides = ["rollout.engine=vllm", f"vllm.server={fake.url}/v1", "vllm.retries=0"]
    run = build_run(config_of(home, *overrides, f"output={tmp_path / 'run'}"))
    hosted, paired = run.source.engine.members
    assert isinstance(hosted.sampler, ServedVLLM) and isinstance(paired, PairedEngine)
    assert hosted.sampler.server.url == fake.url and hosted.support_size == 16
    monkeypatch.setattr(LocalRuntime, "is_alone", False)
    assert len(build_run(config_of(home, *overrides, f"output={tmp_path / 'shared'}")).source.engine.members) == 2
    fake.close()
    with pytest.raises(ServerError, match=r"/v1/models gave no answer: asked once"):
        build_run(config_of(home, *overrides, f"output={tmp_path / 'gone'}"))
    assert not (tmp_path / "gone").exists()
    with pytest.raises(
        ConfigurationError, match="there are several processes; a sampler that is started here draws for"
    ):
        check_runtime(config_of(home, "rollout.engine=vllm"), is_shared=True)
