"""`tutelage compare` and `tutelage sweep` from the command line: to the table, through failures, and refusals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.commands import Command
from tutelage.comparison.running import Job
from tutelage.demo import student_path, teacher_path

ROOT = Path(__file__).parents[2]
OPD, TRB = ROOT / "recipes" / "opd.toml", ROOT / "recipes" / "trb.toml"

# What `train` leaves, from the run file alone; the run whose name is in a file called `broken` fails.
IMITATION = """
import json, pathlib, sys, tomllib
run = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())
folder, steps = pathlib.Path(run["output"]), run["steps"]
broken = pathlib.Path("broken")
if broken.exists() and broken.read_text() == f"{run['name']} {run['seed']}":
    sys.exit("broken on purpose")
(folder / "checkpoints").mkdir(parents=True)
pathlib.Path("started").open("a").write(f"{run['name']} {run['seed']}\\n")
level = {"opd": 0.1}.get(run["name"], 0.2) + 0.05 * run["seed"]
def write(name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\\n" for row in rows))
write("metrics.jsonl", [
    {"step": step, "loss": 1.0, "reward": level, "seconds": 2.0, "response_tokens_total": 100.0}
    for step in range(steps)
])
write("evaluations.jsonl", [
    {"step": step, "name": name, "pass_at_1": level * (step > 0)}
    for step in (0, steps) for name in ("fresh problems", "fresh problems-greedy")
])
(folder / "config.toml").write_text(pathlib.Path(sys.argv[1]).read_text())
(folder / "checkpoints" / "index.json").write_text(json.dumps({"last": f"step-{steps:06d}"}))
"""


@pytest.fixture
def tutelage(tutelage: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """The command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tutelage


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time."""

    def command(job: Job) -> list[str]:
        return [sys.executable, "-S", "-c", IMITATION, str(job.run_file)]

    monkeypatch.setattr(Job, "command", property(command))
    monkeypatch.setattr("tutelage.comparison.running.SECONDS_BETWEEN_LOOKS", 0.02)


SMALL = ("--world", "embedded", "--steps", 2, "--problems", 3)


def test_recipes_are_compared_on_the_packaged_pair(tutelage: Command, tmp_path: Path) -> None:
    code, out, err = tutelage(
        "compare", OPD, TRB, "--seeds", 1, "--output", "c", *SMALL, "--set", "rollout.prompts_per_step=2",
        "--set", "evaluation.num_samples=1", "--set", "evaluation.every=0", "--steps", 1,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "Replaced for trb: policy.kl_radius.steps 50 -> 1." in out
    assert "Fewer than two pairs of seeds" in out
    found = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert found["missing"] == [] and set(found["runs"]["trb"]["0"]) == set(found["measures"])
    assert found["summaries"]["trb"]["teacher_forwards"]["mean"] > found["summaries"]["opd"]["teacher_forwards"]["mean"]
    assert found["summaries"]["opd"]["teacher_forwards"]["mean"] == 2 * 4, "every answer is read once"
    assert (tmp_path / "c" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("imitated")
def test_a_failed_run_is_named_and_tried_again(tutelage: Command, tmp_path: Path) -> None:
    words = ("compare", OPD, TRB, "--seeds", 3, "--output", "c", *SMALL)
    (tmp_path / "broken").write_text("trb 1")
    code, out, err = tutelage(*words)
    assert code == 2 and err.count("\n") == 1
    assert "1 of 6 runs failed: trb seed 1 (exit code 1, c/runs/trb/seed-1.log)" in err
    assert "broken on purpose" in (tmp_path / "c/runs/trb/seed-1.log").read_text()
    assert "n 2" in out and "n 3" in out and "Not finished: trb seed 1." in out
    begun = (tmp_path / "started").read_text().splitlines()
    assert sorted(begun) == ["opd 0", "opd 1", "opd 2", "trb 0", "trb 2"]

    code, _, err = tutelage(*words)
    assert code == 2 and "already exists" in err and "--resume" in err
    (tmp_path / "broken").unlink()
    code, out, err = tutelage(*words, "--resume")
    assert (code, err) == (0, "")
    assert (tmp_path / "started").read_text().splitlines() == [*begun, "trb 1"], "finished runs are not repeated"
    code, out, err = tutelage(*words, "--resume", "--json")
    assert (code, err) == (0, "") and out == (tmp_path / "c/comparison.json").read_text(), "one document, and it alone"
    found = json.loads((tmp_path / "c/comparison.json").read_text())
    difference = found["summaries"]["trb"]["pass_at_1"]
    assert (difference["difference"], difference["num_pairs"]) == (pytest.approx(0.1), 3)
    assert difference["interval"] == pytest.approx([0.1, 0.1])
    assert difference["spread"] == pytest.approx(0.05)
    text = (tmp_path / "c/comparison.md").read_text()
    assert "| trb (n 3) | 25.0 ± 5.0<br>+10.0<br>[+10.0, +10.0] |" in text
    assert "Up to" in text or "One run at a time" in text
    code, _, err = tutelage(*words, "--resume", "--checkpoint", "best")
    assert code == 2 and "checkpoint_rule is 'best', was 'last'" in err


@pytest.mark.usefixtures("imitated")
def test_a_sweep_has_a_baseline(tutelage: Command, tmp_path: Path) -> None:
    grid = ("--grid", "policy.kl_radius.start=0.01,0.05", "--grid", "policy.kl_radius.steps=1,2")
    code, out, err = tutelage("sweep", TRB, *grid, "--baseline", OPD, "--seeds", 2, *SMALL)
    assert (code, err) == (0, "")
    folder = tmp_path / "sweeps" / "trb"
    found = json.loads((folder / "comparison.json").read_text())
    assert found["methods"] == ["opd", *(f"trb-start={a}-steps={b}" for a in ("0.01", "0.05") for b in (1, 2))]
    run_file = (folder / "runs" / "trb-start=0.05-steps=2" / "seed-1.toml").read_text()
    assert re.search(r"start = 0.05\nstop = 0.0\nsteps = 2\n", run_file), run_file
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG") and "sweep.png" in out
    assert "Choose here, and report" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", OPD, TRB), "data.path is missing"),
        (("compare", OPD, "nowhere.toml"), "nowhere.toml' does not exist"),
        (("compare", OPD, OPD, *SMALL), "2 of the run files have the name 'opd'"),
        (("compare", OPD, TRB, *SMALL, "--set", "trb:steps=1"), "steps is 2 for opd, 1 for trb"),
        (("compare", OPD, TRB, *SMALL, "--set", "evaluation.sets=[]"), "evaluation.sets is empty"),
        (("compare", OPD, TRB, "--world", "nowhere.toml"), "nowhere.toml' does not exist"),
        (("compare", OPD, TRB, "--steps", 3), "--world embedded, or use --set steps=N"),
        (("compare", OPD, *SMALL, "--resume"), "holds no comparison"),
        (("sweep", TRB, *SMALL, "--grid", "policy.kl_radius"), "expected key.path=v1,v2"),
        (("sweep", TRB, *SMALL, "--grid", "policy.kl_radius=-1"), "kl_radius"),
    ],
)
def test_refusals_come_first(words: tuple[object, ...], message: str, tutelage: Command, tmp_path: Path) -> None:
    code, out, err = tutelage(*words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert message in err
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_problems_that_are_trained_on_are_refused(tutelage: Command, imitated: None, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "What is 1 + 1?", "answer": "2"}\n')
    words = ["compare", OPD, TRB, "--seeds", 1, "--output", "c", "--set", f"data={problems}", "--set", "steps=1"]
    words += ["--set", 'evaluation.sets=[{path="problems.jsonl", name="fresh problems"}]']
    words += ["--set", f"student={student_path()}", "--set", f"teacher={teacher_path()}"]
    code, _, err = tutelage(*words)
    assert code == 2 and "1 evaluation problems are also training prompts, such as 'What is 1 + 1?'" in err
    assert not (tmp_path / "c").exists()
    code, out, _ = tutelage(*words, "--allow-overlap")
    assert code == 0 and "partly about problems that were trained on" in out


@pytest.mark.usefixtures("imitated")
def test_a_comparison_goes_on_with_what_it_began_with_or_not_at_all(tutelage: Command, tmp_path: Path) -> None:
    """Also the runs that had not begun: they would have no beginning to be compared with."""
    words = ("compare", OPD, TRB, "--seeds", 1, "--output", "c", *SMALL)
    assert tutelage(*words)[0] == 0
    more = (*words[:4], 2, *words[5:], "--resume")
    prompts = tmp_path / "c/data/prompts.jsonl"
    rows = prompts.read_text().splitlines(keepends=True)
    prompts.write_text("".join([rows[1], rows[0], *rows[2:]]))
    code, _, err = tutelage(*more)
    assert code == 2 and err.count("\n") == 1
    assert "changed since it began: " in err and "the prompts that data.path gives" in err
    assert err.endswith("To go on all the same: --resume --accept answers --accept prompts\n")
    assert not (tmp_path / "c/runs/opd/seed-1").exists()
    code, _, err = tutelage(*more, "--accept", "answers", "--accept", "prompts")
    assert (code, err) == (0, "")
    assert [each["step"] for each in json.loads((tmp_path / "c/fingerprints.json").read_text())["accepted"]] == [0]
    code, _, err = tutelage(*words, "--accept", "prompts")
    assert code == 2 and "Add --resume" in err
    code, _, err = tutelage(
        *words[:6], "d", *SMALL, "--set", "data.use_chat_template=true", "--set", "student=nowhere/x"
    )
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "d").exists(), "nothing blocks the corrected command"
