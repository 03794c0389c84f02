from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.support.chat import TEMPLATE, make_tokenizer, read
from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks import Columns, Problem, load_problems, prefix_pool, render, turn_shares


def conversation(num_turns: int) -> list[dict[str, str]]:
    """A question, and so many answers with what a tool returned between them."""
    found = [{"role": "system", "content": "Use the tool."}, {"role": "user", "content": "?"}]
    for turn in range(num_turns):
        found += [{"role": "assistant", "content": f"call {turn}"}, {"role": "tool", "content": f"result {turn}"}]
    return found


def test_early_turns_are_asked_for_more_often() -> None:
    assert turn_shares(4, 0.6) == pytest.approx([0.4596, 0.2757, 0.1654, 0.0993], abs=5e-5)
    assert turn_shares(1, 0.6) == [1] and turn_shares(4, 1.0) == [0.25] * 4 and turn_shares(3, 0.0) == [1, 0, 0]


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("over", "first"), [("conversation", {0: 0.5 * 0.625, 1: 0.5 * 0.4596}), ("pool", {0: 0.2648, 1: 0.2648})]
)
def test_turns_follow_the_law_of_each_conversation_or_of_all(over: str, first: dict[int, float]) -> None:
    count = 20_000
    rows = prefix_pool([conversation(2), conversation(4)], count, over=over, seed=1)
    found = Counter(row["conversation"] for row in rows if row["turn"] == 0)
    assert {place: number / count for place, number in found.items()} == pytest.approx(first, abs=0.012)


def test_a_row_waits_for_its_turn() -> None:
    rows = prefix_pool([conversation(3)], 40, decay=1.0)
    assert {row["turn"] for row in rows} == {0, 1, 2}
    for row in rows:
        roles = Counter(message["role"] for message in row["problem"])
        assert roles["assistant"] == roles["tool"] == row["turn"] and row["num_turns"] == 3
        assert row["problem"][-1]["role"] in ("user", "tool")
    assert (
        rows == prefix_pool([conversation(3)], 40, decay=1.0) != prefix_pool([conversation(3)], 40, decay=1.0, seed=1)
    )


def test_rows_are_prompts(tmp_path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in prefix_pool([conversation(2)], 5)))
    problems = load_problems(path, Columns(answer=None))
    assert len(problems) == 5 and all(problem.messages[0]["role"] == "system" for problem in problems)


CALLING = [
    {"role": "user", "content": "How warm is it in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}],
    },
    {"role": "tool", "content": "21 degrees", "name": "weather", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is 21 degrees.", "tool_calls": None},
]
# As templates of Qwen, Llama and Hermes do.
TOOLS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for call in m.tool_calls or [] %}<call>"
    "{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_calls_of_tools_are_part_of_what_is_read(tmp_path: Path, suffix: str) -> None:
    """The prompt is the beginning of the conversation as the template writes it, up to the turn."""
    path, tokenizer = tmp_path / f"pool.{suffix}", make_tokenizer(TOOLS)
    rows = prefix_pool([CALLING], 20, decay=1.0)
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)
    whole = tokenizer.apply_chat_template([{**m, "content": m["content"] or ""} for m in CALLING], tokenize=False)
    problems = load_problems(path, Columns(answer=None))
    texts = {len(problem.messages): read(tokenizer, render(problem, tokenizer)) for problem in problems}
    assert sorted(texts) == [1, 3] and all(whole.startswith(text) for text in texts.values())
    assert '<call>weather {"city": "Rome"}</call><|tool|>21 degrees<|assistant|>' in texts[3]
    messages = next(problem.messages for problem in problems if len(problem.messages) == 3)
    assert messages[2] == CALLING[2] and "tool_calls" not in messages[0]


def test_arrow_adds_nothing_to_a_call(tmp_path: Path) -> None:
    """It gives the arguments of every call the names of all others'."""
    calls = [{"function": {"name": name, "arguments": {key: "x"}}} for name, key in (("a", "city"), ("b", "unit"))]
    row = {"problem": [CALLING[0], {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "1"}]}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "p.parquet")
    (problem,) = load_problems(tmp_path / "p.parquet", Columns(answer=None))
    assert problem.messages[1] == {"role": "assistant", "tool_calls": calls, "content": ""}


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (True, r"expected text, or a list of messages"),
        (["weather"], r"expected text, or a list of messages"),
        ([{"function": {"name": "a", "arguments": {"x": "\ud800"}}}], "another part of a message of column 'problem'"),
    ],
    ids=["no list", "no mappings", "half a pair"],
)
def test_calls_that_cannot_be_read_are_refused(calls: Any, message: str, tmp_path: Path) -> None:
    row = {"problem": [CALLING[0], {"role": "assistant", "content": "", "tool_calls": calls}, CALLING[2]]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path / "p.jsonl", Columns(answer=None))


def test_a_template_that_leaves_calls_out_is_refused() -> None:
    problem = Problem("q/3", ({**CALLING[0]}, {**CALLING[1], "content": ""}, {**CALLING[2]}))
    with pytest.raises(DataError, match="without its question: 'weather' is not in .* name of every tool that it call"):
        render(problem, make_tokenizer(TEMPLATE))


@pytest.mark.parametrize(
    ("conversations", "options", "message"),
    [
        ([], {}, "there are no conversations"),
        ([[{"role": "user", "content": "?"}]], {}, "conversation 0 has no message of the assistant"),
        ([conversation(1)[2:]], {}, "nothing to answer before message 0"),
        ([conversation(1), [*conversation(1)[:3], conversation(1)[2]]], {}, "conversation 1 .* before message 3"),
    ],
)
def test_what_has_no_turn_is_refused(conversations, options, message) -> None:
    with pytest.raises(DataError, match=message):
        prefix_pool(conversations, 1, **options)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"decay is 1\.5"):
        prefix_pool([conversation(1)], 1, decay=1.5)
    with pytest.raises(ConfigurationError, match="over is 'turn'; expected one of conversation, pool"):
        prefix_pool([conversation(1)], 1, over="turn")
