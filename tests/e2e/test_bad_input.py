"""What a user can get wrong, through the command line: one clear message, exit code 2, nothing written or lost."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.tiny_run import make_tokenizer, write_prompts, write_run_file
from tutelage import cli
from tutelage.display import progress

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """How a command ended and what it printed."""

    code: int | str | None
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, prompts and a run file that are as they should be; every case spoils one thing."""
    folder = tmp_path_factory.mktemp("home")
    write_run_file(folder)
    return folder


@pytest.fixture
def tutelage(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The `tutelage` command in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as leaving:
            warnings.simplefilter("default", UserWarning)
            cli.main()
        return Outcome(leaving.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be known before the weights are loaded must be."""

    def load(*_: object, **__: object) -> None:
        pytest.fail("weights were about to be loaded")

    monkeypatch.setattr("tutelage.config.models.load_language_model", load)
    monkeypatch.setattr("tutelage.models.load_language_model", load)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the steps of these runs."""
    monkeypatch.setattr("tutelage.api.runs.plot_run", lambda folder: folder / "curves.png")


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def refused(outcome: Outcome, *facts: str) -> None:
    """Exit code 2 and, on stderr, one line that says what is wrong."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.count("error:") == 1 and outcome.out == ""
    for fact in facts:
        assert fact in outcome.err


def rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"problem": "What is 1 + 1?", "answer": "2"}


# Prompts, numbers and names: refused before any weights are loaded. Every case: overrides, and what the message says.

DATA: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing": (lambda folder: folder / "nowhere.jsonl", ["nowhere.jsonl is not there", "Check data.path"]),
    "empty": (lambda folder: rows(folder / "p.jsonl"), ["p.jsonl has no rows", "at least one problem", "data.path"]),
    "blank": (lambda folder: rows(folder / "p.jsonl", "\n\n"), ["p.jsonl has no rows"]),
    "no prompt column": (
        lambda folder: rows(folder / "p.jsonl", GOOD, {"question": "What?", "answer": "2"}),
        ["row 1 (line 2)", "'problem'", "question", "data.prompt_column"],
    ),
    "no answer column": (
        lambda folder: rows(folder / "p.jsonl", GOOD, {"problem": "What?"}),
        ["row 1 (line 2)", "'answer'", "data.answer_column"],
    ),
    "an empty prompt": (
        lambda folder: rows(folder / "p.jsonl", GOOD, {**GOOD, "problem": " \n"}),
        ["row 1 (line 2)", "only white space"],
    ),
    "half an emoji in an answer": (
        lambda folder: rows(folder / "p.jsonl", GOOD, {**GOOD, "answer": "2 \ud83d"}),
        ["row 1 (line 2)", "half of a surrogate pair in column 'answer'", "Repair the escapes"],
    ),
    "NUL in an id": (
        lambda folder: rows(folder / "p.jsonl", GOOD, {**GOOD, "id": "a\0b"}),
        ["row 1 (line 2)", "a NUL character in column 'id'"],
    ),
    "not JSON": (lambda folder: rows(folder / "p.jsonl", GOOD, "{oops\n"), ["line 2 is not JSON", "Repair or remove"]),
    "another format": (lambda folder: rows(folder / "p.csv", "a,b\n"), ["p.csv", ".jsonl, .json or .parquet"]),
    "a folder": (lambda folder: folder, ["a directory", ".jsonl, .json or .parquet"]),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("case", DATA)
def test_prompts_that_cannot_be_used(home: Path, tmp_path: Path, tutelage: Command, case: str) -> None:
    make, facts = DATA[case]
    path, output = make(tmp_path), tmp_path / "out"
    before = snapshot(tmp_path)
    refused(tutelage("train", home / "run.toml", *settings(f"data={path}", f"output={output}")), *facts)
    assert snapshot(tmp_path) == before and not output.exists()


RUN = {
    "unknown key": (["rollout.max_new_token=4"], ["'rollout.max_new_token'", "Did you mean rollout.max_new_tokens?"]),
    "unknown table": (["polcy.kl_radius=0.1"], ["'polcy'", "Did you mean policy?"]),
    "unknown field": (["policy.kl_raduis=0.1"], ["'policy.kl_raduis'", "Did you mean policy.kl_radius?"]),
    "unknown schedule field": (["policy.kl_radius.step=4"], ["policy.kl_radius", "'step'", "Did you mean 'steps'?"]),
    "unknown policy": (["policy=trust"], ["policy.name is 'trust'", "trust_region"]),
    "wrong kind": (["steps=many"], ["steps is 'many'", "integer"]),
    "negative budget": (["policy.kl_radius=-0.1"], ["policy.kl_radius is -0.1", "cannot be negative", "Use 0"]),
    "negative budget later": (["policy.kl_radius.stop=-0.1"], ["policy.kl_radius reaches -0.1", "cannot be negative"]),
    "horizon 0": (["policy.kl_radius.steps=0"], ["policy.kl_radius.steps is 0", "at least 1"]),
    "no tokens": (["rollout.max_new_tokens=0"], ["rollout.max_new_tokens is 0", "at least 1"]),
    "all prompts too long": (
        ["data.max_prompt_tokens=5"],
        ["all 12 prompts are longer than data.max_prompt_tokens = 5", "Raise data.max_prompt_tokens"],
    ),
    "unknown verifier": (["data.verifier=maths"], ["data.verifier is 'maths'", "Did you mean 'math'?"]),
    "verifier not there": (["data.verifier=no_such_module:check"], ["no_such_module:check", "cannot be loaded"]),
    "verifier's function not there": (["data.verifier=json:check"], ["json:check", "cannot be loaded"]),
    "nothing to judge with": (["data.verifier="], ["data.verifier is empty", "evaluation.sets", "'math'"]),
    "unknown metric": (["checkpoint.best_metric=accuracy"], ["best_metric is 'accuracy'", "pass_at_1"]),
    "missing problems": (["evaluation.sets=none.jsonl"], ["none.jsonl is not there"]),
    "support too small": (
        ["rollout.support_size=8"],
        ["rollout.support_size is 8", "divergence.top_k = 16", "at least that"],
    ),
    "nothing to compare with": (
        ["divergence.name=sampled_reverse_kl", "divergence.baseline=leave_one_out", "rollout.samples_per_prompt=1"],
        ["rollout.samples_per_prompt is 1", "compares answers to one prompt", "at least 2"],
    ),
    "sinkhorn on a top-k": (
        ["divergence=sinkhorn", "divergence.support=student_top_k"],
        ["divergence.support is 'student_top_k'", "'full'"],
    ),
    "tiles of tokens that are compared with each other": (
        ["divergence=sinkhorn", "runtime.loss=tiled"],
        ["runtime.loss is 'tiled'", "Sinkhorn compares several tokens", "runtime.loss = 'auto'"],
    ),
    "unknown weighting": (["weighting=tips"], ["weighting.name is 'tips'", "position_decay, tip"]),
    "float16 for what learns": (["student.dtype=float16"], ["student.dtype is 'float16'", "'bfloat16'", "autocast"]),
    "a rate that overflows": (["optimizer.learning_rate=1e39"], ["optimizer.learning_rate is 1e+39", "at most 1000"]),
    "unknown device": (["runtime.device=abacus"], ["runtime.device is 'abacus'", "cpu"]),
    "no such student": (["student=/no/such/model"], ["'/no/such/model' does not exist", "Hugging Face hub id"]),
    "a name that leads elsewhere": (["name=../../mine"], ["name is '../../mine'", "under which no file can be kept"]),
    "a path with a line break": (["data.scores=a\nb"], ["data.scores is 'a\\nb'", "a path has no line breaks"]),
    "nobody's home": (["data.scores=~nobody-here/x"], ["data.scores is '~nobody-here/x'", "home folder of a user"]),
    "a million threads": (["runtime.threads=1000000"], ["runtime.threads is 1000000", "1024"]),
    "half a character": (["student=\udcff"], ["student.path is '\\udcff'", "not valid Unicode"]),
    "two settings in one": (["steps=5\nseed=3"], ["steps is '5\\nseed=3'", "integer"]),
    "no override": (["steps"], ["--set got 'steps'", "key.path=value"]),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("case", RUN)
def test_a_run_that_cannot_be(home: Path, tmp_path: Path, tutelage: Command, case: str) -> None:
    overrides, facts = RUN[case]
    refused(tutelage("train", home / "run.toml", *settings(*overrides, f"output={tmp_path / 'out'}")), *facts)
    assert snapshot(tmp_path) == {}


@pytest.mark.usefixtures("no_weights")
def test_run_files_that_cannot_be_read(tmp_path: Path, tutelage: Command) -> None:
    refused(tutelage("train", "nowhere.toml"), "run file 'nowhere.toml' does not exist", "recipes/trb.toml")
    (tmp_path / "broken.toml").write_text("steps = = 3")
    refused(tutelage("train", "broken.toml"), "'broken.toml' is not valid TOML", "line 1")
    (tmp_path / "short.toml").write_text("steps = 3")
    refused(tutelage("train", "short.toml"), "student is missing", "--set student=")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 2000 + "]" * 2000)
    refused(tutelage("train", "deep.toml"), "'deep.toml'", "nested more than 32 deep")
    (tmp_path / "utf16.toml").write_bytes("steps = 3\n".encode("utf-16-le"))
    refused(tutelage("train", "utf16.toml"), "'utf16.toml' has zero bytes", "Save it as UTF-8")


@pytest.mark.usefixtures("no_weights")
def test_problem_sets_of_one_name(home: Path, tmp_path: Path, tutelage: Command) -> None:
    (tmp_path / "a").mkdir()
    first, second = write_prompts(tmp_path / "sums.jsonl", 2), write_prompts(tmp_path / "a" / "sums.jsonl", 2)
    facts = ["two evaluation sets are called 'sums'", "`name`"]
    refused(
        tutelage("train", home / "run.toml", *settings(f'evaluation.sets=["{first}", "{second}"]', "output=o")), *facts
    )
    refused(tutelage("evaluate", home / "student", "--task", first, "--task", second), *facts)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../student", "{}/.", "link"])
@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_teacher_that_is_the_student(
    home: Path, tmp_path: Path, tutelage: Command, spelling: str, command: str
) -> None:
    (tmp_path / "link").symlink_to(home / "student")
    arguments = [tmp_path / "out.jsonl"] if command == "generate" else []
    teacher = tmp_path / "link" if spelling == "link" else spelling.format(home / "student")
    outcome = tutelage(command, home / "run.toml", *arguments, *settings(f"teacher={teacher}", "output=out"))
    refused(outcome, "teacher and student are both", str(home / "student"), "stronger model")
    assert set(snapshot(tmp_path)) == {str(tmp_path / "link")}


@pytest.mark.usefixtures("no_weights")
def test_different_tokenizers_are_named_by_their_first_difference(
    home: Path, tmp_path: Path, tutelage: Command
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(home / "teacher", teacher)
    make_tokenizer(extra=("zz",)).save_pretrained(teacher)
    for command in (["train", home / "run.toml"], ["generate", home / "run.toml", tmp_path / "out.jsonl"]):
        outcome = tutelage(*command, *settings(f"teacher={teacher}", f"output={tmp_path / 'out'}"))
        refused(
            outcome, "different tokenizers", "id 256: student '<|endoftext|>', teacher 'zz'", "student's model family"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


def spoil_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def tear_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (spoil_config, ["has no config.json", "not a model directory"]),
        (spoil_tokenizer, ["has no tokenizer"]),
        (spoil_weights, ["no weights (*.safetensors)"]),
        (pickle_weights, ["only pickled weights (*.bin)", "can run code", "allow_pickle = true"]),
        (tear_weights, ["no model could be loaded"]),
    ],
)
def test_a_model_directory_that_is_not_whole(
    home: Path, tmp_path: Path, tutelage: Command, role: str, spoil: Callable[[Path], None], facts: list[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / role, model)
    spoil(model)
    before = snapshot(tmp_path)
    outcome = tutelage("train", home / "run.toml", *settings(f"{role}={model}", f"output={tmp_path / 'out'}"))
    refused(outcome, *facts, str(model))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("rollout.max_new_tokens=2040", ["rollout.max_new_tokens is 2040", "holds 2048 in all", "to at most"]),
        ("evaluation.max_new_tokens=5000", ["evaluation.max_new_tokens is 5000", "holds 2048 in all", "to at most"]),
    ],
)
def test_answers_longer_than_the_context(
    home: Path, tmp_path: Path, tutelage: Command, override: str, facts: list[str]
) -> None:
    refused(tutelage("train", home / "run.toml", *settings(override, f"output={tmp_path / 'out'}")), *facts)
    assert snapshot(tmp_path) == {}


def spoil_nothing(folder: Path) -> None:
    """The folder as it is."""


class NothingToLoad:
    """Stands in for transformers' loader of weights."""

    @staticmethod
    def from_pretrained(*_: object, **__: object) -> None:
        pytest.fail("weights were about to be loaded")


@pytest.mark.parametrize(
    ("role", "spoil", "override"),
    [
        ("student", spoil_weights, "seed=1"),
        ("teacher", spoil_config, "seed=1"),
        ("teacher", spoil_weights, "seed=1"),
        ("teacher", pickle_weights, "seed=1"),
        ("teacher", spoil_nothing, "rollout.max_new_tokens=2040"),
        ("teacher", spoil_nothing, "evaluation.max_new_tokens=2040"),
    ],
)
def test_gigabytes_are_not_read_for_a_run_that_cannot_be(
    home: Path,
    tmp_path: Path,
    tutelage: Command,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    spoil: Callable[[Path], None],
    override: str,
) -> None:
    shutil.copytree(home / role, tmp_path / "model")
    spoil(tmp_path / "model")
    monkeypatch.setattr("tutelage.models.loading.AutoModelForCausalLM", NothingToLoad)
    outcome = tutelage("train", home / "run.toml", *settings(f"{role}={tmp_path / 'model'}", override, "output=out"))
    refused(outcome)


# Output ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
def test_what_exists_is_never_touched(home: Path, tmp_path: Path, tutelage: Command) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    prompts = home / "prompts.jsonl"
    before = snapshot(tmp_path)
    exists = "already exists"
    run_file, thesis = home / "run.toml", tmp_path / "mine" / "thesis.txt"
    refused(tutelage("train", run_file, *settings("output=mine")), exists, "--set output=FOLDER", "--resume")
    refused(tutelage("train", run_file, *settings("output=mine/thesis.txt")), exists)
    refused(tutelage("train", run_file, *settings("output=mine/thesis.txt/run")), "is not a folder", str(thesis))
    refused(tutelage("evaluate", home / "student", "--task", prompts, "--output", "mine"), exists, "mine")
    refused(tutelage("evaluate", home / "student", "--task", prompts, "--output", thesis / "x"), "is not a folder")
    refused(tutelage("generate", run_file, thesis), exists, "thesis.txt", "another file")
    refused(tutelage("generate", run_file, thesis / "x.jsonl"), "is not a folder")
    refused(tutelage("demo", "--output", "mine"), exists)
    assert snapshot(tmp_path) == before


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
def test_there_must_be_a_run_to_resume(home: Path, tmp_path: Path, tutelage: Command) -> None:
    (tmp_path / "mine").mkdir()
    for output in ("nowhere", "mine"):
        outcome = tutelage("train", home / "run.toml", "--resume", *settings(f"output={output}"))
        refused(outcome, f"--resume: {output} holds no run", "Start it without --resume")
    assert set(snapshot(tmp_path)) == {str(tmp_path / "mine")}


def test_a_resumed_run_is_the_run_that_was_started(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_curves(monkeypatch)
    run, command = tmp_path / "run", ["train", home / "run.toml"]
    small = [f"output={run}", "rollout.max_new_tokens=4", "evaluation.num_samples=1", "checkpoint.every=1"]
    assert tutelage(*command, *settings(*small, "steps=2")).code == 0
    before = snapshot(run)

    with monkeypatch.context() as patch:
        patch.setattr("tutelage.config.models.load_language_model", lambda *_, **__: pytest.fail("weights were loaded"))
        changed = tutelage(*command, "--resume", *settings(*small, "steps=3", "seed=4", "optimizer.learning_rate=1"))
        refused(changed, "learning_rate is 1.0, was 0.001; seed is 4, was 3", "run/config.toml", "--set output=FOLDER")
        fewer = tutelage(*command, "--resume", *settings(*small, "steps=1"))
        refused(fewer, "steps is 1", "at step 2 already", "Set steps to at least that")
    assert snapshot(run) == before

    more = tutelage(*command, "--resume", *settings(*small, "steps=3", "logging.samples_per_log=1"))
    assert more.code == 0 and "resuming at step 2 of 3" in more.out
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    again = tutelage("train", run / "config.toml", "--resume")
    assert again.code == 0 and "resuming at step 3 of 3" in again.out, "config.toml knows of the third step"


def test_a_run_without_evaluations_can_be_resumed(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", home / "run.toml", *settings("output=run", "rollout.max_new_tokens=4", "evaluation.sets=[]")]
    with monkeypatch.context() as patch:
        without_curves(patch)
        assert tutelage(*command, *settings("steps=1")).code == 0
    assert tutelage(*command, "--resume", *settings("steps=2")).code == 0


# Evaluating and generating --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["/no/such/model", "--task", "{}/prompts.jsonl"], ["'/no/such/model' does not exist", "hub id"]),
        (["{}", "--task", "{}/prompts.jsonl"], ["has no config.json"]),
        (["{}/student", "--task", "nowhere.jsonl"], ["nowhere.jsonl is not there"]),
        (["{}/student", "--task", "{}/prompts.jsonl", "--verifier", "maths"], ["'maths'", "Did you mean 'math'?"]),
        (["{}/student", "--task", "{}/prompts.jsonl", "--prompt-column", "q"], ["'q'", "problem"]),
        (["{}/student", "--task", "{}/prompts.jsonl", "--max-prompt-tokens", "3"], ["all 12 prompts are longer"]),
    ],
)
def test_an_evaluation_that_cannot_be(
    home: Path, tmp_path: Path, tutelage: Command, arguments: list[str], facts: list[str]
) -> None:
    filled = [argument.format(home) for argument in arguments]
    refused(tutelage("evaluate", *filled, "--output", tmp_path / "judged"), *facts)
    assert snapshot(tmp_path) == {}


def test_an_evaluation_longer_than_the_context(home: Path, tmp_path: Path, tutelage: Command) -> None:
    outcome = tutelage(
        "evaluate", home / "student", "--task", home / "prompts.jsonl", "--max-new-tokens", 2048, "--output", "judged"
    )
    refused(outcome, "--max-new-tokens is 2048", "holds 2048 in all", "Set --max-new-tokens to at most")
    assert snapshot(tmp_path) == {}


def test_samples_are_checked_before_they_are_drawn_and_then_kept(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a" / "new" / "folder" / "samples.jsonl"
    command = ["generate", home / "run.toml", place, "--limit", "2"]
    with monkeypatch.context() as patch:
        patch.setattr("tutelage.config.models.load_language_model", lambda *_, **__: pytest.fail("weights were loaded"))
        refused(tutelage(*command, *settings("data.verifier=maths")), "data.verifier is 'maths'")
    refused(tutelage(*command, *settings("rollout.max_new_tokens=5000")), "rollout.max_new_tokens is 5000")
    assert snapshot(tmp_path) == {}
    outcome = tutelage(*command)
    assert (outcome.code, outcome.err) == (0, "") and "2 samples written" in outcome.out
    assert len(place.read_text().splitlines()) == 2 and len(list(place.parent.iterdir())) == 1


# What else reaches the terminal ---------------------------------------------------------------------------------------


def test_some_prompts_too_long_are_counted_aloud(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_curves(monkeypatch)
    long = rows(tmp_path / "p.jsonl", *[GOOD] * 3, {**GOOD, "problem": "Count to " + "many, " * 40 + "please."})
    outcome = tutelage(
        "train",
        home / "run.toml",
        *settings(f"data={long}", "data.max_prompt_tokens=100", "steps=1", "output=run", "evaluation.sets=[]"),
    )
    assert outcome.code == 0
    assert outcome.err.startswith("warning: 1 of 4 prompts are longer than data.max_prompt_tokens = 100")
    assert outcome.err.count("\n") == 1 and "Raise data.max_prompt_tokens" in outcome.err


def test_ctrl_c_before_the_first_step(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tutelage.config.models.load_language_model", interrupted)
    outcome = tutelage("train", home / "run.toml", *settings("output=out"))
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "stopped by Ctrl-C\n")
    assert snapshot(tmp_path) == {}


class NobodyReads(io.StringIO):
    """Standard output after `| head` has ended."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_run_that_nobody_reads_any_more_is_saved(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = progress.PlainObserver("tiny")
    observer.console.file = NobodyReads()
    monkeypatch.setattr("tutelage.api.runs.observer_for", lambda name: observer)
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # rich would silence this process's own standard output
    overrides = settings("output=run", "steps=2", "rollout.max_new_tokens=4", "evaluation.sets=[]")
    outcome = tutelage("train", home / "run.toml", *overrides)
    assert outcome.code == 130 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("stopped because its output was closed after 1 of 2 steps; the run")
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()


def test_a_full_disk_is_one_line(home: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("tutelage.config.models.load_language_model", full)
    refused(tutelage("train", home / "run.toml", *settings("output=out")), "No space left on device", "metrics.jsonl")


def test_paths_and_names_as_people_have_them(
    home: Path, tmp_path: Path, tutelage: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run file as Notepad saves it, `~` in its paths, square brackets in the names of files."""
    without_curves(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "student").symlink_to(home / "student")
    prompts = write_prompts(tmp_path / "me" / "[b]sums[i].jsonl", 2)
    run_file = tmp_path / "me" / "windows.toml"
    run_file.write_bytes(b"\xef\xbb\xbf" + (home / "run.toml").read_bytes().replace(b"\n", b"\r\n"))
    small = settings("steps=1", "rollout.max_new_tokens=4", "evaluation.num_samples=1", "student=~/student")
    small += settings("data=~/[b]sums[i].jsonl", "evaluation.sets=~/[b]sums[i].jsonl")

    trained = tutelage("train", "~/windows.toml", *small, *settings("output=~/[red]o[/b]"))
    run = tmp_path / "me" / "[red]o[/b]"
    assert (trained.code, trained.err) == (0, "") and f"run       {run}\n" in trained.out
    assert "evaluation at step 1: [b]sums[i] pass@1" in trained.out
    drawn = tutelage("generate", "~/windows.toml", "~/[/b].jsonl", "--limit", 1, *small)
    assert (drawn.code, drawn.err) == (0, "") and f"written to {tmp_path / 'me' / '[/b].jsonl'}" in drawn.out
    judged = tutelage("evaluate", "~/student", "--task=~/[b]sums[i].jsonl", "--output=~/[x]", "--max-new-tokens", 4)
    assert (judged.code, judged.err) == (0, "") and f"{prompts.stem} " in judged.out
    assert (tmp_path / "me" / "[x]").is_dir() and (tmp_path / "me" / "[" / "b].jsonl").is_file()
    assert not (tmp_path / "~").exists()


def test_any_terminal_can_show_it() -> None:
    """In an encoding without the letters that are printed, and in the locale that promises nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "tutelage", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"") and "distil" in done.stdout.decode("ascii").lower()


def test_a_reader_that_left_is_no_error(tmp_path: Path) -> None:
    """`tutelage --help | true` says nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "tutelage", "--help"], stdout=write, stderr=subprocess.PIPE, env=environment, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_no_traceback_reaches_the_user(home: Path, tmp_path: Path) -> None:
    """The same in a process of its own: a warning and the error are two plain lines, and nothing else is printed."""
    long = rows(tmp_path / "p.jsonl", GOOD, {**GOOD, "problem": "Count to " + "many, " * 40 + "please."})
    overrides = settings(f"data={long}", "data.max_prompt_tokens=100", "rollout.max_new_tokens=9999", "output=out")
    command = [sys.executable, "-m", "tutelage", "train", str(home / "run.toml"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("warning: 1 of 2 prompts are longer") and second.startswith(
        "error: rollout.max_new_tokens is"
    )
    assert not (tmp_path / "out").exists()
