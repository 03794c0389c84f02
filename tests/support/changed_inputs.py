"""Everything that a run reads, changed one by one: in a folder with `student`, `teacher` and `prompts.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text())) and None


def scale(role: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {name: 1.25 * weight for name, weight in load_file(folder / role / "model.safetensors").items()}
        save_file(weights, folder / role / "model.safetensors", {"format": "pt"})

    return change


def exchange_tokens(folder: Path) -> None:
    """Two letters take each other's ids, in both tokenizers; the prompts do not have them."""
    for role in ("student", "teacher"):
        path = folder / role / "tokenizer.json"
        content = json.loads(path.read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["X"], vocabulary["Z"] = vocabulary["Z"], vocabulary["X"]
        path.write_text(json.dumps(content))


# What is changed -> how, and the names of `config.fingerprints.INPUTS` that differ then.
CHANGES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "a question": (edit("prompts.jsonl", lambda text: text.replace("What is 9 + 18?", "What is 18 + 9?")), {"prompts"}),
    "a row fewer": (edit("prompts.jsonl", lambda text: text.rpartition("{")[0]), {"prompts", "answers"}),
    "an answer": (edit("prompts.jsonl", lambda text: text.replace('"27"', '"28"')), {"answers"}),
    "a problem that is judged": (edit("judged.jsonl", lambda text: text.replace("2 + 4", "4 + 2")), {"evaluation"}),
    "the teacher's weights": (scale("teacher"), {"teacher"}),
    "the student's weights": (scale("student"), {"student"}),
    "a template": (
        edit("teacher/chat_template.jinja", lambda text: text.replace("assistant", "Assistant")),
        {"templates", "prompts"},
    ),
    "the tokenizers": (exchange_tokens, {"tokenizer"}),
}
