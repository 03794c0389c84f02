"""Habits of hands: a first run file by questions, recipes from anywhere, completion in a shell."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command
from tests.support.tiny_run import save_pair, write_prompts
from tutelage import __version__
from tutelage.cli.starting import Answers, plain_recipes, run_file_text
from tutelage.config import load_config
from tutelage.preflight import Verdict, examine

pytestmark = [pytest.mark.processes, pytest.mark.runs]
ROOT = Path(__file__).parents[2]
BASH, FISH = shutil.which("bash"), shutil.which("fish")


@pytest.fixture
def tutelage(tutelage: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tutelage


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models and prompts for them."""
    folder = tmp_path_factory.mktemp("home")
    save_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One in which `tutelage` is a command."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "tutelage"
    command.write_text(f"#!{sys.executable}\nfrom tutelage.cli import main\n\nmain()\n")  # as pip writes it
    command.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "TERM": "xterm"}


def test_it_says_its_version(tutelage: Command) -> None:
    code, out, err = tutelage("--version")
    assert (code, out, err) == (0, f"tutelage {__version__}\n", "")


# --- init ------------------------------------------------------------------------------------------------------------


def test_what_init_writes_the_doctor_accepts(home: Path, tutelage: Command) -> None:
    words = ["--student", home / "student", "--teacher", home / "teacher", "--data", home / "prompts.jsonl"]
    code, out, err = tutelage("init", "first.toml", "--method", "trb", *words, "--max-new-tokens", 16)
    assert (code, err) == (0, "") and "tutelage doctor first.toml" in out
    code, out, err = tutelage("doctor", "first.toml", "--quick", "--set", "runtime.device=cpu")
    assert (code, err) == (0, "") and " 0 error" not in out and "error" not in out.splitlines()[-1]
    code, out, err = tutelage("init", "first.toml", "--method", "trb", *words, "--max-new-tokens", 16)
    assert code == 2 and out == "" and "first.toml already exists; nothing is overwritten" in err


@pytest.mark.sweeps
@pytest.mark.parametrize("method", plain_recipes())
def test_the_doctor_accepts_every_method(method: str, home: Path, tmp_path: Path) -> None:
    teacher = str(home / "teacher") if "\n[teacher]" in plain_recipes()[method].text else None
    answers = Answers(method, str(home / "student"), teacher, str(home / "prompts.jsonl"), 16)
    path = tmp_path / "mine.toml"
    path.write_text(run_file_text(answers, "mine", path))
    findings = examine(load_config(path, ["runtime.device=cpu", f"output={tmp_path}/run"]), quick=True)
    assert [finding.text for finding in findings if finding.verdict == Verdict.error] == []


def test_a_person_answers_in_a_terminal(home: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    command = ["tutelage", "init", "mine.toml", "--data", str(home / "prompts.jsonl")]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True
    ) as asking:
        os.close(theirs)
        os.write(ours, f"nothing\nopd\n{home}/teacher\n{home}/student\n24\n".encode())
        out, err = asking.communicate(timeout=120)
        os.close(ours)
    assert asking.returncode == 0, err
    assert out.count("Method") == 2 and "there is no recipe 'nothing'" in out + err
    text = (tmp_path / "mine.toml").read_text()
    assert f'path = "{home}/student"' in text and "max_new_tokens = 24 " in text and '\nname = "student"\n' in text


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not BASH, reason="needs bash")
def test_bash_completes_commands_options_and_recipes(environment: dict[str, str]) -> None:
    script = """
source <(_TUTELAGE_COMPLETE=source_bash tutelage)
for line in "tutelage re" "tutelage recipes show kdrl_" "tutelage init --max"; do
  COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _tutelage_completion tutelage
  echo "${COMPREPLY[@]}"
done
complete -p tutelage
"""
    done = subprocess.run([str(BASH), "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    commands, recipes, options, registered = done.stdout.splitlines()
    assert set(commands.split()) == {"recipes", "report"} and recipes.split() == ["kdrl_annealed", "kdrl_masked"]
    assert options == "--max-new-tokens" and registered == "complete -o default -F _tutelage_completion tutelage"


@pytest.mark.skipif(not FISH, reason="needs fish")
def test_fish_completes_with_a_line_each(environment: dict[str, str]) -> None:
    script = 'env _TUTELAGE_COMPLETE=source_fish tutelage | source; complete -C "tutelage recipes show kdrl_"'
    done = subprocess.run([str(FISH), "--no-config", "-c", script], capture_output=True, text=True, env=environment)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["kdrl_annealed", "kdrl_masked"]
    assert "\tKDRL with a mask: the teacher speaks of wrong answers only." in done.stdout


@pytest.mark.parametrize(
    ("shell", "line"),
    [("zsh", '"trb":"Trust-Region behaviour Blending'), ("fish", "trb\tTrust-Region behaviour Blending")],
)
def test_zsh_and_fish_are_answered_as_they_ask(shell: str, line: str, environment: dict[str, str]) -> None:
    def asked(instruction: str, **variables: str) -> str:
        own = environment | variables | {"_TUTELAGE_COMPLETE": f"{instruction}_{shell}"}
        done = subprocess.run(["tutelage"], capture_output=True, text=True, env=own, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert f"_TUTELAGE_COMPLETE=complete_{shell}" in asked("source")
    told = asked("complete", _TYPER_COMPLETE_ARGS="tutelage recipes show tr", _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert line in told and "tropd" in told and "opd_then_rl" not in told


# --- JSON ------------------------------------------------------------------------------------------------------------

SHORT = ("evaluation.sets=[]", "steps=2", "runtime.device=cpu", "runtime.threads=1", "rollout.prompts_per_step=2")


def test_a_run_from_the_first_file_to_the_report_as_documents(home: Path, tutelage: Command, tmp_path: Path) -> None:
    """Every command that prints numbers: one document, exit code 0, and nothing said beside it."""

    def document(*words: object) -> Any:
        code, out, err = tutelage(*words, "--json")
        said = [line for line in err.replace("\r", "\n").splitlines() if "Writing model shards" not in line]
        assert (code, [line for line in said if line]) == (0, []), (out, err)
        return json.loads(out)

    models = ("--student", home / "student", "--teacher", home / "teacher", "--data", home / "prompts.jsonl")
    written = document("init", "first.toml", "--method", "trb", *models, "--max-new-tokens", 8)
    assert written["file"] == "first.toml" and written["max_new_tokens"] == 8
    short = [word for each in SHORT for word in ("--set", each)]

    examined = document("doctor", "first.toml", "--quick", *short)
    assert examined["verdicts"]["error"] == 0 and examined["findings"][0].keys() >= {
        "check",
        "verdict",
        "text",
        "remedy",
    }
    assert sum(examined["verdicts"].values()) == len(examined["findings"])

    trained = document("train", "first.toml", *short)
    assert (trained["folder"], trained["steps"], trained["is_finished"]) == ("runs/first", 2, True)
    assert trained["metrics"]["step"] == 1 and isinstance(trained["metrics"]["loss"], float)
    student = trained["checkpoints"]["last"]

    verified = document("verify", "runs/first")
    assert verified["is_verified"] and [Path(it["path"]).name for it in verified["checkpoints"]] == [Path(student).name]

    judged = document("evaluate", student, "--task", home / "prompts.jsonl", "--limit", 3, "--max-new-tokens", 4)
    (result,) = judged["results"]
    assert result["num_problems"] == 3 and 0 <= result["pass_at_1"] <= 1

    drawn = document("generate", "first.toml", "drawn.jsonl", "--limit", 2, *short)
    assert drawn["num_samples"] == 2 == len((tmp_path / "drawn.jsonl").read_text().splitlines())
    scored = document("score", "first.toml", "--answers", "drawn.jsonl", "--output", "scores", *short)
    assert scored == {"folder": "scores", "num_answers": 2}
    exported = document("export", "runs/first", "--output", "student")
    assert exported["folder"] == "student" and (tmp_path / "student/model.safetensors").is_file()

    probed = document("probe", "budget", "first.toml", "--radii", "0,0.01", "--samples", 1, "--limit", 2, *short)
    assert [point["kl_radius"] for point in probed["points"]] == [0, 0.01] and probed["files"] == []
    reported = document("report", "runs/first")
    assert reported["is_complete"] and Path(reported["path"]).is_file() and reported["left_out"] == []


def test_a_doctor_that_finds_an_error_says_so_in_the_document(home: Path, tutelage: Command, tmp_path: Path) -> None:
    models = ("--student", home / "student", "--teacher", home / "teacher", "--data", home / "prompts.jsonl")
    tutelage("init", "long.toml", "--method", "opd", *models, "--max-new-tokens", 100_000)
    code, out, err = tutelage("doctor", "long.toml", "--quick", "--json")
    assert (code, err) == (1, "")
    (wrong,) = [finding for finding in json.loads(out)["findings"] if finding["verdict"] == "error"]
    assert wrong["check"] == "contexts" and "100000" in wrong["text"].replace(",", "")
    code, out, err = tutelage("train", "long.toml", "--json")
    assert (code, out) == (2, "") and json.loads(err)["error"]["exit_code"] == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_demo_as_a_document(tutelage: Command, tmp_path: Path) -> None:
    code, out, err = tutelage("demo", "--output", "demo", "--steps", 1, "--problems", 4, "--json")
    assert (code, err) == (0, "")
    seen = json.loads(out)
    assert seen["methods"].keys() == {"opd", "trb"} and 0 <= seen["methods"]["trb"]["pass_at_1_after"] <= 1
    assert seen["methods"]["opd"]["acceptance_rate"] is None, "nothing is drafted"
    assert (tmp_path / seen["figure"]).is_file()


def test_a_reader_that_goes_away_is_no_fault(environment: dict[str, str]) -> None:
    for words in (["recipes"], ["recipes", "--json"]):
        with subprocess.Popen(
            ["tutelage", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        ) as writer:
            assert writer.stdout is not None and writer.stderr is not None
            writer.stdout.close()
            assert (writer.wait(timeout=120), writer.stderr.read()) == (1, "")
