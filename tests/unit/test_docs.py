"""The documentation is true: its keys exist and are complete, its links lead somewhere, its examples parse and run."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pydantic import BaseModel

from tests.support.rollouts import rollout_of
from tests.support.tiny_models import pair
from tests.support.tiny_run import write_run_file
from tutelage.advantages import ADVANTAGES
from tutelage.cli import app
from tutelage.comparison import make_methods, parse_grid
from tutelage.config import (
    EvaluationSetConfig,
    PhaseConfig,
    RunConfig,
    build_phases,
    build_run,
    load_config,
    read_run_file,
    resolve_config,
)
from tutelage.diagnostics import METRICS
from tutelage.evaluation import EvaluationSample
from tutelage.losses import LOSSES
from tutelage.models import AdapterSettings
from tutelage.policies import POLICIES, Student, Teacher, Temperature
from tutelage.rollout import Capacity, HostedEngine, HostedSettings, Request
from tutelage.schedules import SCHEDULES
from tutelage.targets import TARGETS
from tutelage.training import Observer, train
from tutelage.types import Batch, DenseTarget, Prompt
from tutelage.weighting import WEIGHTINGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def rows(path: Path) -> dict[str, list[str]]:
    """Every name in backticks in the first cell of a table row -> the row's other cells."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("|"):
            first, *others = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", first), others)
    return found


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_every_number_of_a_run_is_explained(tmp_path: Path) -> None:
    run = build_run(
        load_config(write_run_file(tmp_path), ["steps=2", "policy.kl_radius.steps=1", "data.verifier=exact"])
    )
    train(run, Observer())
    written = {
        name: [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluations.jsonl", "samples.jsonl")
    }
    warm, plain = written["metrics.jsonl"]
    assert "kl_radius" in warm and "kl_radius" not in plain, "one step with a blend and one without"
    explained = rows(DOCS / "usage/metrics.md")
    for record in [*written["metrics.jsonl"], *written["evaluations.jsonl"]]:
        assert set(record) <= set(explained)
    training_page = (DOCS / "usage/training.md").read_text()
    for record in written["samples.jsonl"]:
        assert [key for key in record if f"`{key}`" not in training_page] == []
    for name in (path.name for path in (tmp_path / "run").iterdir()):
        assert name in training_page, f"training.md does not say what {name} is"


@pytest.mark.parametrize("name", METRICS)
def test_metrics_have_their_units(name: str) -> None:
    assert rows(DOCS / "usage/metrics.md")[name][0] == METRICS[name].unit


def test_samples_of_evaluations_are_explained() -> None:
    text = (DOCS / "usage/metrics.md").read_text()
    assert [field.name for field in fields(EvaluationSample) if f"`{field.name}`" not in text] == []


# --- the run file ----------------------------------------------------------------------------------------------------


def keys_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and default of every field below a section; MISSING where it must be given."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        for name, item in schema.model_fields.items():
            nested = list(keys_of(item.annotation, f"{prefix}{name}."))
            yield from nested or [(prefix + name, MISSING if item.is_required() else item.default)]
    elif is_dataclass(schema):
        for item in fields(schema):
            yield prefix + item.name, item.default


KEYS = dict(keys_of(RunConfig)) | dict(keys_of(EvaluationSetConfig, "evaluation.sets."))
KEYS |= dict(keys_of(PhaseConfig, "phase.")) | dict(keys_of(AdapterSettings, "student.adapter."))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_run_file_is_explained_with_its_default(key: str) -> None:
    stated, default = rows(DOCS / "usage/run-file.md")[key][0], KEYS[key]
    if default is MISSING:
        assert stated == "required"
    elif default is None:
        assert stated == "—"
    elif key != "name":  # load_config puts the file's stem there
        assert tomllib.loads(f"value = {stated.strip('`')}")["value"] == default


@pytest.mark.parametrize(
    "members",
    [POLICIES, TARGETS, LOSSES, ADVANTAGES, SCHEDULES, WEIGHTINGS],
    ids=["policy", "target", "loss", "advantage", "schedule", "weighting"],
)
def test_every_member_of_an_axis_is_explained_with_its_fields(members: dict[str, type]) -> None:
    explained = rows(DOCS / "usage/run-file.md")
    for name, member in members.items():
        text = " ".join(explained[name])
        for field in fields(member):
            assert not field.init or f"`{field.name}`" in text or f"divergence.{field.name}" in explained, field.name


# --- links, commands, examples ---------------------------------------------------------------------------------------


@page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    text = PAGES[0].read_text()
    assert [str(path.relative_to(ROOT)) for path in PAGES[1:] if f"({path.relative_to(ROOT)})" not in text] == []


@page
def test_commands_are_ones_that_exist(page: Path) -> None:
    """Options parse, recipes exist, and every `--set` is accepted by the configuration."""
    command_line = typer.main.get_command(app)
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["tutelage"]:
            continue
        parsed = command_line.commands[words[1]].make_context(words[1], words[2:]).params  # type: ignore[attr-defined]
        run_file = str(parsed.get("run_file", ""))
        if words[1] in ("compare", "sweep"):
            files = [file for file in (*parsed.get("run_files", []), parsed.get("baseline"), run_file) if file]
            needed = ["data=prompts.jsonl"] if parsed["world"] else []
            make_methods([read_run_file(ROOT / file) for file in files], [*(parsed["overrides"] or []), *needed], None)
            assert parse_grid(parsed.get("grid", ["steps=1"]))
        elif run_file.startswith("recipes/"):
            build_phases(load_config(ROOT / run_file, parsed["overrides"] or []))


@page
def test_run_files_in_the_text_are_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if page.parent.name != "extending":  # those name parts that are yet to be written
            needed = {"student": "student", "teacher": "teacher"} | (
                {} if "data" in table else {"data": "prompts.jsonl"}
            )
            if isinstance(table.get("data"), dict):
                table["data"].setdefault("path", "prompts.jsonl")
            build_phases(resolve_config(needed | table))
    for block in blocks(page, "json"):
        json.loads(block)


@page
def test_python_in_the_text_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_readmes_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for block in blocks(ROOT / "README.md", "python") if "PairedEngine" in block]
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert len(re.findall(r"^teacher share \d\.\d\d: ", capsys.readouterr().out, flags=re.MULTILINE)) == 4


@pytest.mark.parametrize(
    "name", ["concepts/on-policy-distillation.md", "concepts/trust-region-blending.md", "usage/data-and-verifiers.md"]
)
def test_small_examples_run_and_print_what_the_text_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(DOCS / name, "python")
    exec(compile(example, name, "exec"), {"__name__": "example"})
    stated = [float(number) for number in re.findall(r"\d*\.\d+", (DOCS / name).read_text())]
    for number in re.findall(r"\d\.\d+", capsys.readouterr().out):
        assert min(abs(float(number) - x) for x in stated) < 2e-6, number


def test_worked_examples_do_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts_of(name: str) -> Iterator[type]:
        for block in blocks(DOCS / "extending" / name, "python"):
            if "@dataclass" in block:
                module = types.ModuleType("worked_example")
                monkeypatch.setitem(sys.modules, module.__name__, module)
                exec(compile(block, name, "exec", dont_inherit=True), vars(module))
                yield next(x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__)

    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = student.softmax(-1), teacher.softmax(-1)
    (plausible,) = parts_of("new-policy.md")
    kept = p * (q >= 0.3 * q.amax(-1, keepdim=True))
    expected = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(plausible(0.3)(student, teacher).logprobs_BV.exp(), expected)
    assert torch.equal(plausible(1)(student, teacher).logprobs_BV.argmax(-1), teacher.argmax(-1))
    assert [plausible(SCHEDULES["linear"](0.5, 0.0, 2)).at(k).needs_teacher for k in range(3)] == [True, True, False]
    with pytest.raises(ValueError, match="at most 1"):
        plausible(1.5)
    triangular, unsure = parts_of("new-divergence.md")
    found = triangular(support="full")(student, DenseTarget(teacher))
    torch.testing.assert_close(found, ((p - q) ** 2 / (p + q)).sum(-1))
    nothing, entropies = torch.zeros(3), torch.tensor([0.0, 0.2, 0.3])
    records = Batch([rollout_of([0], [1, 2, 3], nothing, nothing, {"student.entropy_T": entropies})])
    assert unsure(0.25)(records).tolist() == [0, 0, 1]
    halving, smoothed = parts_of("new-schedule-and-target.md")
    assert [halving(0.05, 5)(k) for k in (0, 5, 10)] == pytest.approx([0.05, 0.025, 0.0125])
    torch.testing.assert_close(smoothed(0.3)(p.log(), q.log()).exp(), 0.7 * q + 0.3 / 7)
    assert smoothed(halving(1.0, 1)).at(2).weight == 0.25
    plain, remembering = parts_of("new-engine.md")
    models, request, settings = pair(), Request([Prompt([1, 2]), Prompt([4])], 8, 3), HostedSettings(tolerance=1e-6)
    engine = HostedEngine(models, plain(settings, Capacity(64, 8, "cpu")), settings, support_size=4)
    for policy in (Student(), Temperature(0.0)):
        engine.sync(policy, 0)
        made = engine.answer(policy, request)
        assert [(r.prompt_index, r.sample_index) for r in made] == [(i, n) for i in range(2) for n in range(3)]
    twice = remembering(engine)
    assert twice.answer(Student(), request) is twice.answer(Student(), request)
    twice.sync(Student(), 1)
    assert twice.answer(Student(), request) is not made and twice.refusal(Teacher()) == engine.refusal(Teacher())


# --- design ----------------------------------------------------------------------------------------------------------


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", "".join(path.read_text() for path in PAGES))
    assert len(named) > 30
    missing = [
        f"{f}::{t}" for f, t in named if not (ROOT / f).is_file() or (f"def {t}(" not in (ROOT / f).read_text() and t)
    ]
    assert missing == []


def test_the_layout_is_the_present_one() -> None:
    layout = (DOCS / "design/architecture.md").read_text()
    package = ROOT / "src" / "tutelage"
    folders = [path.name for path in package.iterdir() if (path / "__init__.py").is_file()]
    modules = [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    assert [name for name in (*(f"{folder}/" for folder in folders), *modules) if name not in layout] == []
