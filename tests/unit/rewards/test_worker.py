"""Rewards in a process of their own: what they see, what they may say, and what ends them."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.rated_answers import answers_of
from tutelage.errors import ConfigurationError, RewardError
from tutelage.files import sha256_of
from tutelage.rewards import Format, Function, Rating, Reward, RewardWarning, Setting

pytestmark = pytest.mark.processes

FUNCTIONS = "tests.support.reward_functions"


def judged(reward: Reward, *texts: str) -> list[float]:
    values: list[float] = reward.opened(Setting())(answers_of(texts)).tolist()
    return values


# --- format ----------------------------------------------------------------------------------------------------------


def test_a_response_matches_as_a_whole_and_over_lines() -> None:
    pattern = "<think>.*</think>.+"
    texts = ["<think>\na\n</think> 3", "so <think></think> 3", "<think></think>", "<THINK></THINK>3"]
    assert judged(Format(pattern), *texts) == [1, 0, 0, 0]
    assert judged(Format(f"(?i){pattern}"), *texts) == [1, 0, 0, 1]


def test_an_expression_that_backtracks_for_ever_is_0_with_one_warning() -> None:
    reward = Format(r"(a+)+b", timeout_seconds=0.3, label="as")
    started = time.monotonic()
    with pytest.warns(
        RewardWarning, match=r"the reward 'as' is 0 for a response .* longer than 0\.3 seconds"
    ) as caught:
        assert judged(reward, "a" * 60, "a" * 60 + "!", "ab") == [0, 0, 1]
    assert len(caught) == 1 and time.monotonic() - started < 20


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "*"])
def test_what_is_no_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"reward\.pattern is .*, which is no regular expression"):
        Format(pattern)


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_function_gets_prompt_response_and_answer() -> None:
    assert judged(Function(f"{FUNCTIONS}:echo"), "a", "b", "c") == [0, 1, 0]
    assert judged(Function(f"{FUNCTIONS}:vowels"), "", "aaab", "學") == [0, 0.75, 0]
    answers = answers_of(["a"])
    unknown = dataclasses.replace(answers, problems=[dataclasses.replace(answers.problems[0], answer=None)])
    assert Function(f"{FUNCTIONS}:knows_no_answer").opened(Setting())(unknown).tolist() == [1.0]


@pytest.mark.parametrize(
    ("response", "failure"),
    [
        ("raise", "KeyError: 'no such rule'"),
        ("hang", "it took longer than 0.5 seconds"),
        ("end", "it ended its process"),
        ("list", "the function returned a list; expected one number"),
        ("text", "the function returned '0.5'; expected one number"),
        ("none", "the function returned None; expected one number"),
    ],
)
def test_an_answer_without_a_number_is_an_error_that_names_it(response: str, failure: str) -> None:
    reward = Function(f"{FUNCTIONS}:odd", timeout_seconds=0.5, label="mine")
    with pytest.raises(RewardError) as caught:
        judged(reward, "fine", response)
    assert str(caught.value).startswith("the reward 'mine' (tests.support.reward_functions:odd) has no number for an ")
    assert "problem p1" in str(caught.value) and failure in str(caught.value)


def test_a_number_that_is_none_is_seen_by_the_run() -> None:
    answers = answers_of(["fine", "nan"])
    reward = Function(f"{FUNCTIONS}:odd", label="mine")
    rating = Rating([reward], problems=answers.problems, response_of=lambda each: answers.responses[each.prompt_index])
    with pytest.raises(RewardError, match="the reward 'mine' is nan for an answer to problem p1"):
        rating.judge(answers.rollouts, [0, 1], None)


def test_a_function_is_found_before_the_run_and_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text("def polite(prompt, response, answer):\n    return 1.0\n")
    found = Function("my_rules:polite").check(Setting())
    assert found == {"module": f"sha256 {sha256_of(tmp_path / 'my_rules.py')}"}
    with pytest.raises(
        ConfigurationError, match=r"^reward\.function is 'my_rules:rude', which cannot be loaded .*rude"
    ):
        Function("my_rules:rude").check(Setting())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function": "polite"}, r"reward\.function is 'polite'; expected \"module:function\""),
        ({"function": "a:b", "timeout_seconds": 0.0}, r"reward\.timeout_seconds is 0; expected a finite number"),
        ({"function": "a:b", "memory_limit_gib": -1.0}, r"reward\.memory_limit_gib is -1; expected a finite number"),
    ],
)
def test_refuses_impossible_fields_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Function(**fields)
