"""The documentation is true: its keys exist and are complete, its links lead somewhere, its examples parse and run."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tutelage
from tests.support.quick_run import made
from tests.support.rated_answers import answers_of
from tests.support.rollouts import rollout_of
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
    rating_plan,
    read_run_file,
    resolve_config,
)
from tutelage.demo import reference_loop, student_path, teacher_path
from tutelage.diagnostics import METRICS
from tutelage.evaluation import SELECTIONS, EvaluationSample
from tutelage.losses import LOSSES, PairFacts, TokenFacts
from tutelage.models import TRAINABLES, AdapterSettings
from tutelage.models.trainables import Base
from tutelage.policies import POLICIES, Student, Teacher
from tutelage.rewards import COMBINATIONS, REWARDS, Setting
from tutelage.rollout import SAMPLERS, Request
from tutelage.schedules import SCHEDULES
from tutelage.targets import TARGETS
from tutelage.tasks import TemplateClock
from tutelage.training import UPDATES, Observer, train
from tutelage.types import Batch, DenseTarget
from tutelage.weighting import WEIGHTINGS

ROOT = Path(__file__).parents[1]
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
    [POLICIES, TARGETS, LOSSES, ADVANTAGES, SCHEDULES, WEIGHTINGS, REWARDS, COMBINATIONS],
    ids=["policy", "target", "loss", "advantage", "schedule", "weighting", "reward", "reward combination"],
)
def test_every_member_of_an_axis_is_explained_with_its_fields(members: dict[str, type]) -> None:
    explained = rows(DOCS / "usage/run-file.md")
    for name, member in members.items():
        text = " ".join(explained[name])
        for field in fields(member):
            assert not field.init or f"`{field.name}`" in text or f"divergence.{field.name}" in explained, field.name


def test_every_rule_of_selection_is_explained() -> None:
    explained = rows(DOCS / "usage/evaluating.md")
    assert [name for name in SELECTIONS if name not in explained] == []


# --- links, commands, examples ---------------------------------------------------------------------------------------


@page
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def linked_from(page: Path) -> set[Path]:
    return {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text())}


def test_every_page_can_be_reached_from_the_readme() -> None:
    """By links of the README, or of a table of contents that it links to: a README.md of docs/."""
    reached = linked_from(PAGES[0])
    for contents in [path for path in reached if path.name == "README.md"]:
        reached |= linked_from(contents)
    assert [str(path.relative_to(ROOT)) for path in PAGES[1:] if path not in reached] == []


def test_every_page_has_its_place_on_the_site() -> None:
    listed = set(re.findall(r"^ +- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert {str(path.relative_to(DOCS)) for path in PAGES[1:]} - listed == set()


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
        if page.parent != EXTENDING:  # those name members that are registered first, see below
            needed = {"student": "student", "teacher": "teacher"} | (
                {} if "data" in table else {"data": "prompts.jsonl"}
            )
            if isinstance(table.get("data"), dict):
                table["data"].setdefault("path", "prompts.jsonl")
            config = resolve_config(needed | table)
            build_phases(config)
            rating_plan(config, "cpu", TemplateClock())
    for block in blocks(page, "json"):
        json.loads(block)


@page
def test_tables_have_a_heading(page: Path) -> None:
    """A row after a blank line would be shown as text."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        _, *lines = table.splitlines()
        assert lines and re.fullmatch(r"\|(-+\|)+", lines[0]), table


@page
def test_python_in_the_text_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_readmes_examples_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the first one writes
    training, answering = blocks(ROOT / "README.md", "python")
    exec(compile(training, "README.md", "exec"), {"__name__": "readme"})
    *_, page, finished = capsys.readouterr().out.splitlines()
    assert finished == "True" and Path(page.split()[0]).is_file()
    exec(compile(answering, "README.md", "exec"), {"__name__": "readme"})
    assert len(re.findall(r"^teacher share \d\.\d\d: ", capsys.readouterr().out, flags=re.MULTILINE)) == 4


def test_the_page_of_the_functions_runs_from_top_to_bottom(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "usage/python.md"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for example in blocks(page, "python"):
        exec(compile(example, "python.md", "exec", dont_inherit=True), names)
    printed = capsys.readouterr().out
    (messages,) = blocks(page, "text")
    assert [line for line in messages.splitlines() if line not in printed] == []
    assert names["half"].metrics["loss"].tolist()[:2] == names["seen"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".html"] == ["first.report.html"]
    functions = re.findall(r"`(\w+)`", page.read_text().partition("The commands call")[0])
    assert set(functions) >= {name for name in tutelage.__all__ if name[0].islower()}


def test_the_loop_of_ones_own_is_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    """The losses that the page prints are those of the specification in plain PyTorch, on the same tokens."""
    (example,) = blocks(DOCS / "usage/own-loop.md", "python")
    assert len([line for line in example.partition("for step in")[2].splitlines() if line]) <= 20, "about twenty lines"
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(compile(example, "own-loop.md", "exec", dont_inherit=True), names)
    printed = re.findall(r"^step \d: loss (\d\.\d{4}), teacher share 0\.\d\d$", capsys.readouterr().out, re.MULTILINE)
    student, teacher = (AutoModelForCausalLM.from_pretrained(path()) for path in (student_path, teacher_path))
    setting = reference_loop.Setting(names["tokenizer"].eos_token_id, prompts_per_step=4, samples=2, limit=48, warmup=1)
    expected = list(reference_loop.train(student, teacher, names["prompts"], setting, steps=3))
    assert [float(loss) for loss in printed] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    "name", ["concepts/on-policy-distillation.md", "concepts/trust-region-blending.md", "usage/data-and-verifiers.md"]
)
def test_small_examples_run_and_print_what_the_text_says(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where some of them write
    for example in blocks(DOCS / name, "python"):
        exec(compile(example, name, "exec"), {"__name__": "example"})
    stated = [float(number) for number in re.findall(r"\d*\.\d+", (DOCS / name).read_text())]
    for number in re.findall(r"\d\.\d+", capsys.readouterr().out):
        assert min(abs(float(number) - x) for x in stated) < 2e-6, number


# --- members of one's own --------------------------------------------------------------------------------------------

EXTENDING = DOCS / "extending"
# Page -> where a run file finds its members.
TABLES: dict[str, dict[str, Any]] = {
    "new-policy.md": POLICIES,
    "new-schedule.md": SCHEDULES,
    "new-target.md": TARGETS,
    "new-loss.md": LOSSES,
    "new-advantage.md": ADVANTAGES,
    "new-weighting.md": WEIGHTINGS,
    "new-reward.md": REWARDS,
    "new-engine.md": SAMPLERS,
    "new-trainable.md": TRAINABLES,
    "new-update.md": UPDATES,
}


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


@pytest.fixture
def members_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """Run the members of a page, each in a module of its name; its classes in order, the last one of each module."""

    def members(page: str) -> list[Any]:
        found = []
        for block in blocks(EXTENDING / page, "python"):
            names = re.findall(r"^class (\w+)", block, flags=re.MULTILINE)
            if names:
                module = types.ModuleType(snake_case(names[0]))
                monkeypatch.setitem(sys.modules, module.__name__, module)
                exec(compile(block, page, "exec", dont_inherit=True), vars(module))
                found.append(getattr(module, names[-1]))
                name = snake_case(names[-1]).removesuffix("_settings")
                monkeypatch.setitem(TABLES[page], name, found[-1])
        return found

    return members


def run_of_a_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the page's script, with a tiny pair in place of its run file, for one step; the run that it made."""
    (script,) = [block for block in blocks(EXTENDING / page, "python") if "train(run, Observer())" in block]
    quick = ["policy=student", "evaluation.sets=[]", "rollout.max_new_tokens=6", "optimizer.warmup_steps=0"]
    config = load_config(write_run_file(folder, steps=1), quick)
    monkeypatch.setattr("tutelage.config.load_config", lambda path: config)
    names: dict[str, Any] = {}
    exec(compile(script, page, "exec", dont_inherit=True), names)
    return names["run"]


def weights_after(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The student's weights before and after the run."""
    start, end = (load_file(folder / path / "model.safetensors") for path in ("student", "run/checkpoints/step-000001"))
    return start, end


@pytest.mark.parametrize("page", TABLES)
def test_run_files_of_ones_own_members_are_valid(page: str, members_of: Callable[[str], list[Any]]) -> None:
    members_of(page)
    for block in blocks(EXTENDING / page, "toml"):
        config = resolve_config({"student": "s", "teacher": "t", "data": "d.jsonl", **tomllib.loads(block)})
        build_phases(config)
        rating_plan(config, "cpu", TemplateClock())


@pytest.mark.parametrize("page", TABLES)
def test_a_member_of_ones_own_is_short(page: str) -> None:
    members = [block for block in blocks(EXTENDING / page, "python") if re.search(r"^class ", block, flags=re.M)]
    assert members and all(len(block.splitlines()) <= 40 for block in members)


def test_the_policy_of_the_page(members_of: Callable[[str], list[Any]]) -> None:
    (plausible,) = members_of("new-policy.md")
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = student.softmax(-1), teacher.softmax(-1)
    kept = p * (q >= 0.3 * q.amax(-1, keepdim=True))
    expected = kept / kept.sum(-1, keepdim=True)
    torch.testing.assert_close(plausible(0.3)(student, teacher).logprobs_BV.exp(), expected)
    assert torch.equal(plausible(1)(student, teacher).logprobs_BV.argmax(-1), teacher.argmax(-1))
    torch.testing.assert_close(plausible(0)(student, None).logprobs_BV.exp(), p)
    assert [plausible(SCHEDULES["linear"](0.5, 0.0, 2)).at(k).needs_teacher for k in range(3)] == [True, True, False]
    with pytest.raises(ValueError, match="at most 1"):
        plausible(1.5)


def test_the_schedule_and_the_target_of_the_pages(members_of: Callable[[str], list[Any]]) -> None:
    (halving,), (smoothed,) = members_of("new-schedule.md"), members_of("new-target.md")
    assert [halving(0.05, 5)(k) for k in (0, 5, 10)] == pytest.approx([0.05, 0.025, 0.0125])
    p, q = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(smoothed(0.3)(p.log(), q.log()).exp(), 0.7 * q + 0.3 / 7)
    assert smoothed(halving(1.0, 1)).at(2).weight == 0.25


def test_the_losses_of_the_page(members_of: Callable[[str], list[Any]]) -> None:
    triangular, focal, direction, hinge = members_of("new-loss.md")
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = student.softmax(-1), teacher.softmax(-1)
    found = triangular(support="full")(student, DenseTarget(teacher))
    torch.testing.assert_close(found, ((p - q) ** 2 / (p + q)).sum(-1))
    logprobs = torch.tensor([0.0, math.log(0.5), -math.inf], requires_grad=True)
    nothing, advantages = torch.full((3,), math.nan), torch.tensor([1.0, 3.0, 1.0])
    values = focal().on_tokens(logprobs, TokenFacts(nothing, nothing, nothing, advantages, nothing, nothing > 0))
    assert values.tolist() == pytest.approx([0.0, 3 * 0.25 * math.log(2), math.inf])
    values.sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([0.0, -0.75, -1.0])
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, -1.0]]])
    assert direction().on_layers(outputs, outputs[:1].expand_as(outputs)).tolist() == pytest.approx([0.5, 1.0])
    facts = PairFacts(*torch.tensor([[math.nan] * 3, [math.nan] * 3, [2.0, 4.0, 0.0], [4.0, 2.0, 1.0]]))
    sums = torch.tensor([-2.0, -4.0, 0.0]), torch.tensor([-8.0, -2.0, -0.5])
    assert hinge(margin=0.5).on_pairs(*sums, facts).tolist() == [0.0, 0.5, 0.0]
    for member, field in ((focal, "gamma"), (hinge, "margin")):
        with pytest.raises(ValueError, match=f"{field} is -1; expected a finite number of at least 0"):
            member(**{field: -1})


def test_the_advantage_and_the_weighting_of_the_pages(members_of: Callable[[str], list[Any]]) -> None:
    (bounded,), (unsure,) = members_of("new-advantage.md"), members_of("new-weighting.md")
    logprobs, entropies = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([0.0, 0.2, 0.3])
    batch = Batch([rollout_of([0], [1, 2, 3], logprobs, logprobs, {"student.entropy_T": entropies})])
    assert unsure(0.25)(batch).tolist() == [0, 0, 1]
    assert bounded(1.5)(batch, torch.tensor([-1.5, -math.inf, 0.0])).tolist() == [-0.5, -1.5, 1.5]
    with pytest.raises(ValueError, match="advantage.bound is 0; expected nats above 0"):
        bounded(0)


def test_the_reward_of_the_page(members_of: Callable[[str], list[Any]], tmp_path: Path) -> None:
    (diversity,) = members_of("new-reward.md")
    answers = answers_of(["it is\n3", "so\n3", "4", "3"])
    same = replace(answers, problems=[answers.problems[0]] * 3 + [answers.problems[3]])
    assert diversity().opened(Setting())(same).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 0])
    with pytest.raises(ValueError, match="letters is 0; expected 1 or more"):
        diversity(0)
    train(made(write_run_file(tmp_path, steps=1), "reward=diversity", "data.verifier="), Observer())
    (metrics,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 0 <= metrics["reward/diversity"] == metrics["reward"] <= 0.5


def test_the_function_of_the_rewards_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (function,) = blocks(DOCS / "usage/rewards.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rules.py").write_text(function)
    (named,) = [block for block in blocks(DOCS / "usage/rewards.md", "toml") if "my_rules" in block]
    (table,) = tomllib.loads(named)["reward"]
    judge = REWARDS[table.pop("name")](**table).opened(Setting())
    assert judge(answers_of(["one", "one two", ""])).tolist() == [1, 0.5, 1]


def test_the_trainable_of_the_page(members_of: Callable[[str], list[Any]], tmp_path: Path) -> None:
    (settings,) = members_of("new-trainable.md")
    learning = ["student.trainable.name=last_layers", "student.trainable.count=2"]
    run = made(write_run_file(tmp_path, steps=1), *learning, "optimizer.warmup_steps=0")
    train(run, Observer())
    before, after = weights_after(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = run.models.student.module.model.layers
    assert len(layers) == 2 and changed == {name for name in before if name.startswith("model.layers.")}
    module, base = run.models.student.module, Base("student")
    names = settings(1).put_on(module, base, 0).parameters().keys()
    assert names == {name for name in before if name.startswith("model.layers.1.")}
    with pytest.raises(ValueError, match="3 layers are to learn, but the model has 2"):
        settings(3).put_on(module, base, 0)


def test_the_update_of_the_page(
    members_of: Callable[[str], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members_of("new-update.md")
    run_of_a_page("new-update.md", tmp_path, monkeypatch)
    before, after = weights_after(tmp_path)
    steps = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert torch.isclose(steps.abs(), torch.tensor(1e-3), atol=1e-6).float().mean() > 0.5
    assert steps.abs().max() < 1.001e-3


def test_the_engine_of_the_page(
    members_of: Callable[[str], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members_of("new-engine.md")
    run = run_of_a_page("new-engine.md", tmp_path, monkeypatch)
    naive, own = run.source.engine.members
    request = Request(run.source.prompts[:3], 6, 2, seed=1)
    for ours, theirs in zip(naive.answer(Student(), request), own.answer(Student(), request), strict=True):
        assert ours.response_tokens == theirs.response_tokens and ours.finished == theirs.finished
        torch.testing.assert_close(ours.student_logprobs, theirs.student_logprobs)
        torch.testing.assert_close(ours.student.entropy_T, theirs.student.entropy_T)
    with pytest.raises(ValueError, match="Use policy = 'student'"):
        naive.answer(Teacher(), request)


def test_the_sampler_of_the_page(members_of: Callable[[str], list[Any]], tmp_path: Path) -> None:
    """In a run file: every token's log-probability is compared with ours."""
    members_of("new-engine.md")
    own = ["policy=student", "evaluation.sets=[]", "rollout.max_new_tokens=6", "rollout.engine=generate"]
    train(build_run(load_config(write_run_file(tmp_path, steps=1), [*own, "vllm.tolerance=1e-4"])), Observer())
    (metrics,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 0 <= metrics["vllm_logprob_mismatch"] < 1e-4


def test_the_verifiers_of_the_page() -> None:
    for block in blocks(EXTENDING / "verifier.md", "python"):
        names: dict[str, Any] = {}
        exec(compile(block, "verifier.md", "exec", dont_inherit=True), names)
        if "check" in names:
            assert names["check"]("so it is 12.", "12") and not names["check"]("so it is 13.", "12")


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
    named = re.findall(r"\w+\.py\b", layout.partition("## Imports")[0])
    assert set(named) <= {path.name for path in package.rglob("*.py")}
