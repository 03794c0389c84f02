"""A model card says what was trained on what, with which numbers; nothing of this machine is in it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tutelage.errors import DataError
from tutelage.report import model_card

CONFIG: dict[str, Any] = {
    "name": "trial",
    "output": "/secret/place/runs/trial",
    "seed": 7,
    "steps": 40,
    "student": {"path": "Qwen/Qwen3-1.7B-Base", "adapter": {"method": "lora", "rank": 16}},
    "teacher": {
        "path": "/secret/place/teacher",
        "server": "http://host.internal:8000",
        "routes": {"code": {"path": "Qwen/Qwen3-8B", "server": "http://other.internal:1"}},
    },
    "data": {"path": "openai/gsm8k:main", "split": "train[:100]", "system_prompt": "Think.\n```\nBox | it."},
    "policy": {"name": "trust_region", "kl_radius": {"schedule": "linear", "start": 0.05, "stop": 0.0, "steps": 20}},
    "target": {"name": "teacher"},
    "divergence": {"name": "reverse_kl", "support": "teacher_top_k"},
    "rollout": {"prompts_per_step": 64, "samples_per_prompt": 4, "max_new_tokens": 2048},
    "optimizer": {"name": "adamw", "learning_rate": 1e-5},
    "runtime": {"device": "cuda:3"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text(tomli_w.dumps(CONFIG))
    metrics = [
        {"step": k, "loss": 1.0 / (1 + k), "seconds": 90.0, "response_tokens_total": 1000 * (k + 1)} for k in range(40)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    common = {"name": "gsm8k", "num_problems": 200, "num_samples": 4, "temperature": 1.0}
    evaluations = [
        {**common, "step": 0, "pass_at_1": 0.125, "pass_at_1_interval": [0.1, 0.15]},
        {**common, "step": 20, "pass_at_1": 0.5, "pass_at_1_interval": [0.45, 0.55]},
        {**common, "step": 40, "pass_at_1": 0.75, "pass_at_1_interval": [0.7, 0.8]},
    ]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    inputs = {"versions": {"tutelage": "9.8.7"}, "prompts": {"count": 100}}
    (tmp_path / "fingerprints.json").write_text(json.dumps({"started_in": "/secret/place", "inputs": inputs}))
    return tmp_path


def test_a_card_has_the_hubs_header(run: Path) -> None:
    header = model_card(run, 20).split("---")[1]
    found = {key: json.loads(value) for key, value in re.findall(r"^(\w+): (.*)$", header, flags=re.MULTILINE)}
    assert found == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tutelage", "on-policy-distillation", "trust_region"],
        "base_model": "Qwen/Qwen3-1.7B-Base",
        "datasets": ["openai/gsm8k"],
    }


def test_a_card_has_the_numbers_of_its_checkpoint(run: Path) -> None:
    card = model_card(run, 20)
    assert "by Tutelage 9.8.7: the weights after 20 of 40 steps." in card
    assert "| gsm8k | 200 x 4, temperature 1.0 | 12.5% (10.0 to 15.0) | 50.0% (45.0 to 55.0) |" in card
    assert (
        "20 steps, 20,000 tokens of answers, 0.5 hours; the loss was 1 at the first step and 0.05 at the last" in card
    )
    assert "75.0%" in model_card(run, 40) and "75.0%" not in card
    assert "This checkpoint was not evaluated (after 30 steps)." in model_card(run, 30)


def test_a_card_says_what_was_trained_on_what(run: Path) -> None:
    card = model_card(run, 40)
    for line in (
        "| teacher | `teacher`, `Qwen/Qwen3-8B` |",
        "| prompts | `openai/gsm8k:main`, split train[:100], 100 of them |",
        "| policy | trust_region, kl_radius = {schedule = linear, start = 0.05, stop = 0.0, steps = 20} |",
        "| loss | reverse_kl, support = teacher_top_k |",
        "| what learns | lora, rank = 16, merged into these weights |",
        "| step | 64 prompts x 4 answers of at most 2,048 tokens |",
    ):
        assert line in card


def test_nothing_of_the_machine_is_in_a_card(run: Path) -> None:
    """Folders by their last part, servers not at all; and a prompt cannot end the block that it stands in."""
    card = model_card(run, 40)
    assert not re.search("secret|internal|cuda:3", card)
    (written,) = re.findall(r"^(`{4,})toml\n(.*)^\1$", card, flags=re.MULTILINE | re.DOTALL)
    shown = tomllib.loads(written[1])
    assert shown["data"] == CONFIG["data"] and shown["teacher"]["path"] == "teacher"
    assert shown["teacher"]["server"] == shown["teacher"]["routes"]["code"]["server"] == "http://server"
    assert not {"output", "runtime"} & shown.keys()


def test_a_folder_that_looks_like_an_id_is_a_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (run / "Qwen/Qwen3-1.7B-Base").mkdir(parents=True)
    assert "base_model" not in model_card(run, 40)


def test_damaged_runs_are_named(run: Path) -> None:
    for text in ("{", "[" * 100_000):
        (run / "fingerprints.json").write_text(text)
        with pytest.raises(DataError, match=r"fingerprints\.json is damaged"):
            model_card(run, 40)
    (run / "config.toml").write_text("steps = " + "[" * 100_000)
    with pytest.raises(DataError, match="holds no run that can be read"):
        model_card(run, 40)
    (run / "config.toml").unlink()
    with pytest.raises(DataError, match="holds no run that can be read"):
        model_card(run, 40)
