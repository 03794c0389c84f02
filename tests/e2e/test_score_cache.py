"""Answers are generated, scored once, and learned from without a teacher; what does not fit is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import make_tokenizer, save_model, write_prompts, write_run_file
from tutelage import cli
from tutelage.api import scoring
from tutelage.api.generating import generate
from tutelage.config import RunAssembly, build_run, load_config
from tutelage.errors import ConfigurationError, DataError, OutputExistsError, TutelageError
from tutelage.policies import Offline
from tutelage.preflight import Verdict, examine
from tutelage.rollout import OfflineEngine, Request, ScoreCache
from tutelage.training import Objective, Observer, train
from tutelage.types import Batch

OFF_POLICY = ["policy=offline", "divergence=forward_kl", "divergence.support=teacher_top_k", "divergence.top_k=8"]
PER_SHARD = 10


def score(home: Path, output: Path, *overrides: str, resume: bool = False, answers: Path | None = None) -> list[str]:
    said: list[str] = []
    file = answers or home / "answers.jsonl"
    scoring.score(home / "run.toml", file, output, overrides, shard=PER_SHARD, resume=resume, on_message=said.append)
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file, two answers of the teacher to each of twelve prompts, and the teacher's scores of them."""
    folder = tmp_path_factory.mktemp("home")
    write_run_file(folder)
    generate(folder / "run.toml", {"policy": "teacher"}, output=folder / "answers.jsonl", samples=2)
    score(folder, folder / "scores")
    return folder


def config_of(home: Path, *overrides: str):
    return load_config(home / "run.toml", [f"data.scores={home / 'scores'}", *overrides])


def run(home: Path, output: Path, *overrides: str, resume: bool = False) -> list[dict]:
    train(build_run(config_of(home, f"output={output}", *overrides), resume=resume), Observer())

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = [json.loads(line, parse_constant=refuse) for line in (output / name).read_text().splitlines()]
        if name == "metrics.jsonl":
            metrics = lines
    return metrics


def no_teacher(*_: object, **__: object) -> None:
    pytest.fail("a teacher was about to be loaded")


def test_no_teacher_is_loaded_and_a_resumed_run_leaves_the_same_bytes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.config.assembly.load_teachers", no_teacher)
    straight = run(home, tmp_path / "straight", *OFF_POLICY, "steps=3", "evaluation.sets=[]")
    run(home, tmp_path / "cut", *OFF_POLICY, "steps=2", "evaluation.sets=[]")
    again = run(home, tmp_path / "cut", *OFF_POLICY, "steps=3", "evaluation.sets=[]", resume=True)
    assert [line["loss"] for line in again] == [line["loss"] for line in straight]
    first, second = (tmp_path / name / "checkpoints/step-000003/model.safetensors" for name in ("straight", "cut"))
    assert first.read_bytes() == second.read_bytes()
    for line in straight:
        assert line["loss"] > 0 and line["grad_norm"] > 0 and line["teacher_logprob"] < 0
        assert not {"logprob_mismatch", "behaviour_logprob", "student_logprob"} & set(line), "they are not known"
    generation = json.loads((tmp_path / "straight/checkpoints/step-000003/generation_config.json").read_text())
    assert generation["eos_token_id"] == [256, 258], "the vocabulary is the one shared with the absent teacher"


def test_the_record_is_what_a_teacher_that_is_there_would_say(home: Path) -> None:
    """Loss and gradient from the cache against the same divergence with the teacher asked for all tokens."""
    config = config_of(home, *OFF_POLICY, "student.dtype=float64")
    built = build_run(config.model_copy(update={"output": str(home / "never")}))
    models = RunAssembly.for_sampling(config).models
    offline = OfflineEngine.of(ScoreCache(home / "scores"))
    rollouts = offline.answer(Offline(), Request(built.source.prompts[:4], 4, 2))
    bare = [replace(r, teacher=replace(r.teacher, top=None)) for r in rollouts]
    recipe, found = built.learning.phases[0].recipe, []
    for teachers, answers in (({}, rollouts), (models.teachers, bare)):
        objective = Objective(replace(models, teachers=teachers), recipe)
        models.student.module.zero_grad(set_to_none=True)
        batch = objective.backward(Batch(answers))
        gradient = torch.cat([p.grad.flatten() for p in models.student.module.parameters() if p.grad is not None])
        found.append((batch.loss, gradient))
    (recorded, recorded_gradient), (asked, asked_gradient) = found
    assert recorded == pytest.approx(asked, rel=1e-5) and recorded > 0
    torch.testing.assert_close(recorded_gradient, asked_gradient, rtol=1e-4, atol=1e-7)


def test_fine_tuning_on_offline_answers_and_then_plain_distillation(home: Path, tmp_path: Path) -> None:
    phases = 'phase=[{name="sft", steps=2, policy="offline", divergence="sampled_nll"}, {name="opd", policy="student"}]'
    metrics = run(home, tmp_path / "run", phases, "steps=3", "evaluation.sets=[]", "logging.diagnostics_every=1")
    assert [line["phase"] for line in metrics] == ["sft", "sft", "opd"]
    assert "logprob_mismatch" in metrics[2] and "logprob_mismatch" not in metrics[0]
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    answers = {json.loads(line)["response"] for line in (home / "answers.jsonl").read_text().splitlines()}
    assert {sample["response"] for sample in samples if sample["step"] < 2} <= answers


def test_a_teacher_that_is_a_server_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the run file's teacher is a server \(http://localhost:9\)"):
        score(home, tmp_path / "scores", "teacher.server=http://localhost:9")
    assert not (tmp_path / "scores").exists()


def test_scores_that_nobody_reads_are_mentioned(home: Path, tmp_path: Path) -> None:
    built = build_run(config_of(home, "policy=student", f"output={tmp_path / 'run'}"))
    assert built.messages == ["data.scores is set, but no policy is 'offline', so it is ignored"]


def test_the_doctor_counts_them(home: Path, tmp_path: Path) -> None:
    findings = list(examine(config_of(home, *OFF_POLICY, f"output={tmp_path / 'run'}"), quick=True))
    assert not [finding for finding in findings if finding.verdict == Verdict.error]
    assert any("12 prompts for training, 24 offline answers" in finding.text for finding in findings)


# Refusals ------------------------------------------------------------------------------------------------------------


def other_teacher(home: Path, folder: Path) -> list[str]:
    stops = [258, 256]
    save_model(folder, make_tokenizer(eos="<|im_end|>"), padded_size=272, stop_ids=stops, seed=9, num_hidden_layers=3)
    return [f"teacher={folder}"]


def other_tokenizers(home: Path, folder: Path) -> list[str]:
    for name, eos in (("student", "<|endoftext|>"), ("teacher", "<|im_end|>")):
        shutil.copytree(home / name, folder / name)
        make_tokenizer(eos=eos, extra=("zz",)).save_pretrained(folder / name)
    return [f"student={folder / 'student'}", f"teacher={folder / 'teacher'}"]


def other_template(home: Path, folder: Path) -> list[str]:
    shutil.copytree(home / "teacher", folder)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "teacher"))
    return [f"teacher={folder}"]


def other_stops(home: Path, folder: Path) -> list[str]:
    shutil.copytree(home / "teacher", folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [258, 256, 257]}))
    return [f"teacher={folder}"]


def other_prompts(home: Path, folder: Path) -> list[str]:
    folder.mkdir()
    return [f"data.path={write_prompts(folder / 'more.jsonl', 14)}"]


MISMATCHES: dict[str, tuple[Callable[[Path, Path], list[str]], list[str]]] = {
    "teacher": (other_teacher, ["scored for another run", "teacher.model.weights is", "tutelage score"]),
    "precision": (lambda *_: ["teacher.dtype=float64"], ["teacher.model.dtype is 'float64', was 'float32'"]),
    "tokenizer": (other_tokenizers, ["tokenizer is", "Undo the change"]),
    "template": (other_template, ["template.teacher.chat_template differs"]),
    "system prompt": (lambda *_: ["data.system_prompt=Be brief."], ["template.student.system_prompt is 'Be brief.'"]),
    "stop ids": (other_stops, ["stop_ids.all is [256, 257, 258], was [256, 258]"]),
    "prompts": (other_prompts, ["2 of 14 prompts have no answer", "first number 12", "data.path"]),
    "top k": (lambda *_: ["divergence.top_k=32"], ["divergence.top_k is 32", "16 most probable", "support_size"]),
    "answers": (lambda *_: ["rollout.samples_per_prompt=3"], ["samples_per_prompt is 3", "has 2 answers"]),
    "no folder": (lambda *_: ["data.scores=/nowhere"], ["/nowhere holds no scores", "tutelage score"]),
    "ratio": (lambda *_: ["divergence=sampled_reverse_kl"], ["SampledReverseKL", "is not known", "sampled_nll"]),
    "support": (lambda *_: ["divergence.support=full"], ["divergence.support is 'full'", "'teacher_top_k'"]),
    "weighting": (lambda *_: ["weighting=tip"], ["the weighting Tip", "the student was not asked"]),
    "target": (lambda *_: ["target=extrapolated", "divergence=sampled_nll"], ["has not read the answers"]),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_does_not_fit_is_refused_before_any_weights_are_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("tutelage.config.models.load_language_model", no_teacher)
    make, facts = MISMATCHES[case]
    with pytest.raises(TutelageError) as refusal:
        build_run(config_of(home, *OFF_POLICY, *make(home, tmp_path / "other"), f"output={tmp_path / 'run'}"))
    assert [fact for fact in facts if fact not in str(refusal.value)] == [], str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_offline_answers_must_be_named_and_cannot_be_generated(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"policy is 'offline', but data\.scores names no folder"):
        build_run(load_config(home / "run.toml", [*OFF_POLICY, f"output={tmp_path / 'run'}"]))
    with pytest.raises(ConfigurationError, match="nothing to generate"):
        generate(home / "run.toml", [*OFF_POLICY, f"data.scores={home / 'scores'}"], output=tmp_path / "o.jsonl")


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--answers", home / "answers.jsonl", "--output", tmp_path / "scores", "--shard", 24]
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("tutelage", "score", home / "run.toml", *arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        "shard 1 of 1 written",
        f"24 answers scored in {tmp_path / 'scores'}",
    ]


def test_a_scoring_that_is_killed_goes_on_with_the_next_shard(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    written: list[int] = []
    write = ScoreCache.write

    def dies(cache: ScoreCache, shard: int, rollouts: list) -> None:
        if len(written) == 1:
            raise Killed
        written.append(shard)
        write(cache, shard, rollouts)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreCache, "write", dies)
        with pytest.raises(Killed):
            score(home, tmp_path / "scores")
    with pytest.raises(DataError, match=r"2 of 3 shards of .* shard-00001\.parquet, which was not written yet"):
        build_run(config_of(home, *OFF_POLICY, f"data.scores={tmp_path / 'scores'}", f"output={tmp_path / 'run'}"))
    assert score(home, tmp_path / "scores", resume=True) == ["shard 2 of 3 written", "shard 3 of 3 written"]
    same = {path.name: path.read_bytes() for path in (home / "scores").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "scores").iterdir()} == same


def test_a_shard_that_cannot_be_read_is_named_and_made_again(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    shutil.copytree(home / "scores", folder)
    shard = folder / "shard-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :])
    with pytest.raises(DataError, match=r"1 of 3 shards .* shard-00001\.parquet, which is not what was written"):
        build_run(config_of(home, *OFF_POLICY, f"data.scores={folder}", f"output={tmp_path / 'run'}"))
    assert score(home, folder, resume=True) == [
        "shard-00001.parquet is not what was written; it is written again",
        "shard 2 of 3 written",
    ]
    assert shard.read_bytes() == whole


def test_a_folder_is_continued_as_it_was_begun_or_not_at_all(home: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="already exists"):
        score(home, home / "scores")
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((home / "answers.jsonl").read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match=r"begun with something else \(answers\.file is 'fewer\.jsonl', was 'answers"):
        score(home, home / "scores", resume=True, answers=fewer)


def test_plain_rows_bring_their_own_prompts(home: Path, tmp_path: Path) -> None:
    """Text is cut into tokens and gets a stop token; the prompt is put as training puts it."""
    rows = [{"problem": "What is 1 + 2?", "response": "3"}, {"problem": "Why?", "response": "So", "finished": False}]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(home, tmp_path / "scores", answers=answers)
    cache = ScoreCache(tmp_path / "scores")
    first, second = cache.read(0, 0), cache.read(0, 1)
    tokenizer = make_tokenizer()
    assert first.response_tokens == [*tokenizer("3")["input_ids"], 256] and first.finished
    assert second.response_tokens == tokenizer("So")["input_ids"] and not second.finished
    built = build_run(config_of(home, f"output={tmp_path / 'run'}"))
    assert first.prompt_tokens == list(built.source.prompts[1].student_tokens)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "Why?"}, "row 1 .* no 'response_tokens'; expected the answer as text"),
        ({"problem": "Why?", "response": "", "finished": False}, "row 1 .*empty answer without an end"),
        ({"problem": "Why?", "response_tokens": [5, 999]}, "row 1 .*the token 999, which no model"),
        ({"problem": "Why?", "response_tokens": [5, 258, 5]}, "row 1 .*goes on after a stop token"),
        ({"problem": "Why?", "response_tokens": [5] * 3000}, "3000 tokens|holds 2048"),
        ({"id": "sum/99", "sample": 0, "response": "5"}, "no column"),
    ],
)
def test_rows_that_cannot_be_used_are_named(home: Path, tmp_path: Path, row: dict, message: str) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"problem": "What is 1 + 2?", "response": "3"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        score(home, tmp_path / "scores", answers=answers)
    assert not (tmp_path / "scores").exists()


def test_an_answer_to_a_problem_that_is_not_there_is_named(home: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"id": "sum/99", "sample": 0, "response": "5"}) + "\n")
    with pytest.raises(DataError, match=r"answers the problem 'sum/99', which .*prompts\.jsonl does not have"):
        score(home, tmp_path / "scores", answers=answers)
