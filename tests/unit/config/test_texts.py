"""Texts whose probability is looked at: what is refused before any weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tiny_run import write_run_file
from tutelage.config import RunAssembly, load_config
from tutelage.errors import ConfigurationError, DataError
from tutelage.runtime import LocalRuntime

PLAIN, ANSWERS = '{path="texts.jsonl"}', '{path="texts.jsonl", prompt_column="problem"}'


@pytest.mark.filterwarnings("ignore:.*prompts are longer than data.max_prompt_tokens")
@pytest.mark.parametrize(
    ("texts", "row", "kind", "message"),
    [
        (
            f"[{PLAIN}, {ANSWERS}]",
            {"text": "the sea"},
            ConfigurationError,
            "of evaluation.texts are called 'texts'",
        ),
        (f"[{PLAIN}]", {"text": "a"}, DataError, "text 1, counted from 0, has no token whose probability"),
        (
            f"[{PLAIN}]",
            {"text": "a" * 2049},
            DataError,
            "'texts' has 2049 tokens with its prompt, but",
        ),
        (
            f"[{ANSWERS}]",
            {"text": "one", "problem": "1" * 99},
            DataError,
            "than data.max_prompt_tokens = 64 tokens",
        ),
    ],
    ids=["one name twice", "no token", "too long", "prompt too long"],
)
def test_what_cannot_be_read_is_refused(
    texts: str,
    row: dict[str, str],
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": "What is 1?", "text": "one"}, {"problem": "What is 2?", **row}]
    Path("texts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    config = load_config(write_run_file(tmp_path), [f"evaluation.texts={texts}", "data.max_prompt_tokens=64"])
    with pytest.raises(kind, match=message.replace(".", r"\.")):
        RunAssembly(config, LocalRuntime("cpu")).check_lengths()
