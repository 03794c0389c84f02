"""One answer kept of several, by `tutelage evaluate` and `tutelage generate`; and what both refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Command
from tests.support.tiny_run import write_run_file

REWARDS = """
[[reward]]
name = "correct"

[[reward]]
name = "length"
weight = { schedule = "linear", start = 1.0, stop = -1.0, steps = 6 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    plain = write_run_file(folder)
    (folder / "rated.toml").write_text(plain.read_text() + REWARDS)
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluate_reports_every_rule_beside_pass_at_k(home: Path, tutelage: Command, tmp_path: Path) -> None:
    tasks = ["--task", home / "prompts.jsonl", "--limit", 3, "--max-new-tokens", 8, "--device", "cpu", "--samples", 4]
    rules = ["--run", home / "rated.toml", "--select", "majority, surprisal,reward,surprisal_top3", "--forecast", 16]
    code, out, err = tutelage("evaluate", home / "student", *tasks, *rules, "--output", tmp_path / "judged")
    assert (code, err) == (0, "")
    assert all(word in out for word in ("one answer kept: prompts", "surprisal_top3", "pass@16 %", "best of 16"))
    assert max(len(line) for line in out.splitlines() if not line.startswith("written")) <= 80
    result = json.loads((tmp_path / "judged/prompts.json").read_text())
    assert [each["num_samples"] for each in result["selected"]] == [1, 2, 4] * 4
    assert [each["num_samples"] for each in result["forecasts"]] == [8, 16, 8, 16]
    drawn = lines_of(tmp_path / "judged/prompts.samples.jsonl")
    # The reward at the end of the run: right, and then the shorter the better.
    worth = [sample["correct"] - sample["num_tokens"] / 8 for sample in drawn]
    by_rule = {(each["rule"], each["num_samples"]): each for each in result["selected"]}
    best = [max(worth[first : first + 4]) for first in (0, 4, 8)]
    assert by_rule["reward", 4]["mean_reward"] == pytest.approx(sum(best) / 3)
    assert by_rule["surprisal", 4]["pass_rate"] == pytest.approx(result["pass_at_k"]["4"])

    code, _, _ = tutelage("evaluate", home / "student", *tasks, "--output", tmp_path / "plain")
    plain = json.loads((tmp_path / "plain/prompts.json").read_text())
    assert code == 0 and set(result) - set(plain) == {"selected", "forecasts"}
    assert plain["pass_at_k"] == result["pass_at_k"] and lines_of(tmp_path / "plain/prompts.samples.jsonl") == drawn


def test_generate_keeps_the_best_of_every_few(home: Path, tutelage: Command, tmp_path: Path) -> None:
    few = ["--limit", 2, "--set", "policy=student"]
    both = [home / "rated.toml", tmp_path / "all.jsonl", *few, "--best-of", 3, "--by", "reward", "--samples", 6]
    assert tutelage("generate", *both, "--keep-all")[0] == 0
    drawn = lines_of(tmp_path / "all.jsonl")
    assert [line["sample"] for line in drawn] == [*range(6)] * 2
    for first in range(0, 12, 3):
        rewards = [line["reward"] for line in drawn[first : first + 3]]
        kept = [line["selected"] for line in drawn[first : first + 3]]
        assert kept.index(True) == rewards.index(max(rewards)) and sum(kept) == 1
    assert all(line["reward"] == line["correct"] + line["num_tokens"] / 10 for line in drawn)

    both[1] = tmp_path / "best.jsonl"
    code, out, _ = tutelage("generate", *both)
    assert code == 0 and out.startswith("4 samples written")
    kept = [{key: value for key, value in line.items() if key != "selected"} for line in drawn if line["selected"]]
    assert lines_of(both[1]) == kept

    plain = [home / "run.toml", tmp_path / "plain.jsonl", *few, "--best-of", 2, "--by", "majority"]
    assert tutelage("generate", *plain)[0] == 0
    assert [line["id"] for line in lines_of(plain[1])] == ["sum/0", "sum/1"] and "reward" not in lines_of(plain[1])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--select", "majorty"], "--select names 'majorty'; expected one of reward"),
        (
            ["evaluate", "--select", "reward"],
            "'reward', which needs rewards, and no run file with a [[reward]] is read",
        ),
        (["evaluate", "--forecast", 4], "--forecast is 4 and --samples is 4"),
        (["evaluate", "--forecast", 64, "--temperature", 0], "greedy samples are all the same"),
        (["generate", "--best-of", 4], "--best-of is 4, --by is None"),
        (["generate", "--keep-all"], "--keep-all is True; expected a number and a rule"),
        (["generate", "--best-of", 8, "--by", "majority", "--samples", 4], "--best-of is 8 and --samples is 4"),
        (["generate", "--best-of", 2, "--by", "x"], "--by names 'x'"),
        (["generate", "--best-of", 2, "--by", "reward"], "--by names 'reward', which needs rewards"),
        (["generate", "--best-of", 2, "--by", "majority", "--set", "data.verifier=''"], "'majority', which needs"),
        (["generate", "--best-of", 2, "--by", "surprisal", "--set", "data.verifier=''"], "'surprisal', which needs"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_a_line(
    home: Path, tutelage: Command, tmp_path: Path, arguments: list[object], message: str
) -> None:
    verb, *options = arguments
    output = tmp_path / "out.jsonl"
    if verb == "evaluate":
        given = ["evaluate", home / "student", "--task", home / "prompts.jsonl", "--device", "cpu"]
    else:
        given = ["generate", home / "run.toml", output]
    code, _, err = tutelage(*given, *options)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not output.exists()
