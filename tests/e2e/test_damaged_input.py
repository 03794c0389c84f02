"""Some hundreds of damaged model folders, data, run files, runs and server answers, each made from a seed.

Whatever the damage, a command either does what it was asked, or ends with exit code 2 and one line, and leaves nothing
behind that would be in the way of the corrected command. To see one again: `-k "weights-17"`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.damage import damage_bytes, damage_json, damage_value, replace_file
from tests.support.fake_server import Fake, vllm_of
from tests.support.tiny_run import write_run_file
from tutelage import cli

SMALL = [
    "steps=1",
    "evaluation.sets=[]",
    "rollout.max_new_tokens=3",
    "rollout.prompts_per_step=1",
    "rollout.samples_per_prompt=1",
]
UNJUDGED = "data.verifier="  # a process less for each of hundreds of runs


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file, a pair and prompts that are as they should be."""
    folder = tmp_path_factory.mktemp("home")
    write_run_file(folder)
    return folder


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil; files are links until they are replaced."""
    shutil.copytree(home, tmp_path / "here", copy_function=os.link)
    text = (home / "run.toml").read_text().replace(str(home), str(tmp_path / "here"))
    replace_file(tmp_path / "here" / "run.toml", text.encode())
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tutelage.api.runs.plot_run", lambda folder: folder / "curves.png")
    return tmp_path / "here"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command line in this process: exit code and stderr without warnings."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        capfd.readouterr()
        code: Any = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                cli.main()
            except SystemExit as leaving:
                code = leaving.code or 0
        lines = capfd.readouterr().err.splitlines(keepends=True)
        return code, "".join(line for line in lines if not line.startswith("warning:"))

    return run


def settings(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def accept(outcome: tuple[int, str], damage: object, output: Path | None = None) -> None:
    """Success, or one line with exit code 2 and no folder."""
    code, said = outcome
    shown = f"exit code {code}, {said[-2000:]!r} after {str(damage)[:300]!r}"
    assert code in (0, 2), shown
    if code == 2:
        assert said.startswith("error: ") and said.count("\n") == 1, shown
        assert all(letter.isprintable() for letter in said[:-1]), shown
        assert output is None or not output.exists(), shown


def numbered(kind: str, count: int) -> pytest.MarkDecorator:
    """Damages by their seeds; a fourth of them in every run of the tests, the others among the long ones."""
    marks = [() if seed < count // 4 else pytest.mark.long for seed in range(count)]
    return pytest.mark.parametrize(
        "seed", [pytest.param(seed, marks=marks[seed], id=f"{kind}-{seed}") for seed in range(count)]
    )


def train(*overrides: str, judged: bool = False) -> list[str]:
    return ["train", "run.toml", *settings(*SMALL, *([] if judged else [UNJUDGED]), *overrides)]


# Model folders --------------------------------------------------------------------------------------------------------

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
]


def spoil_model(folder: Path, random_numbers: random.Random) -> str:
    """Damage one of the small files of a model folder, its values or its bytes."""
    path = folder / random_numbers.choice([name for name in MODEL_FILES if (folder / name).exists()])
    content = path.read_bytes()
    if path.suffix == ".json" and random_numbers.random() < 0.7:
        content = json.dumps(damage_json(json.loads(content), random_numbers)).encode()
    else:
        content = damage_bytes(content, random_numbers)
    replace_file(path, content)
    return f"{path.name}: {content[:200]!r}"


@numbered("model", 100)
def test_model_folders(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    random_numbers = random.Random(f"model {seed}")
    role = random_numbers.choice(["student", "teacher"])
    damage = spoil_model(place / role, random_numbers)
    accept(command(*train("output=out")), f"{role} {damage}", place / "out")


def spoil_weights(folder: Path, random_numbers: random.Random) -> str:
    """Damage the weights: their bytes, their header, or an index beside them."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    way = random_numbers.choice(["bytes", "header", "name", "index"])
    if way == "bytes":
        replace_file(path, damage_bytes(content, random_numbers))
        return way
    if way == "index":
        index = {"metadata": {}, "weight_map": {name: path.name for name in header if name != "__metadata__"}}
        damaged = damage_json(index, random_numbers)
        replace_file(folder / "model.safetensors.index.json", json.dumps(damaged).encode())
        return f"{way} {damaged}"
    if way == "name":
        name = random_numbers.choice(sorted(header.keys() - {"__metadata__"}))
        header["module." + name] = header.pop(name)
    else:
        header = damage_json(header, random_numbers)
    text = json.dumps(header).encode()
    replace_file(path, len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"{way} {text[:200]!r}"


@numbered("weights", 50)
def test_weights(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    random_numbers = random.Random(f"weights {seed}")
    role = random_numbers.choice(["student", "teacher"])
    damage = spoil_weights(place / role, random_numbers)
    # A flipped bit may be an ordinary huge number, and the run then ends at a step, with its folder.
    accept(command(*train("output=out")), f"{role} {damage}")


@pytest.fixture(scope="module")
def adapter(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run whose student is an adapter."""
    return _a_run(home, tmp_path_factory.mktemp("adapter") / "run", "student.adapter={rank=2,alpha=4}")


@pytest.fixture(scope="module")
def whole_run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of one step."""
    return _a_run(home, tmp_path_factory.mktemp("whole") / "run")


def _a_run(home: Path, output: Path, *overrides: str) -> Path:
    from tutelage.config import build_run, load_config
    from tutelage.training import Observer
    from tutelage.training import train as run_training

    run_training(
        build_run(load_config(home / "run.toml", [*SMALL, UNJUDGED, f"output={output}", *overrides])), Observer()
    )
    return output / "checkpoints" / "step-000001"


@numbered("adapter", 30)
def test_adapters(place: Path, adapter: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    random_numbers = random.Random(f"adapter {seed}")
    shutil.copytree(adapter, place / "adapter")
    path = place / "adapter" / random_numbers.choice(["adapter_config.json", "base.json", "adapter_model.safetensors"])
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(damage_json(json.loads(content), random_numbers)).encode()
    else:
        content = damage_bytes(content, random_numbers)
    replace_file(path, content)
    damage = f"{path.name} {content[:200]!r}"
    accept(command(*train("student=adapter", "output=out")), damage, place / "out")


# Data -----------------------------------------------------------------------------------------------------------------


@numbered("data", 60)
def test_data(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    random_numbers = random.Random(f"data {seed}")
    rows = [json.loads(line) for line in (place / "prompts.jsonl").read_text().splitlines()]
    ending = random_numbers.choice(["jsonl", "jsonl", "json", "parquet"])
    path = place / f"spoilt.{ending}"
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        replace_file(path, damage_bytes(path.read_bytes(), random_numbers))
    else:
        if random_numbers.random() < 0.7:
            rows = damage_json(rows, random_numbers)
        lines = [json.dumps(row) + "\n" for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
        content = ("".join(lines) if ending == "jsonl" else json.dumps(rows)).encode()
        replace_file(path, content if random_numbers.random() < 0.7 else damage_bytes(content, random_numbers))
    damage = path.read_bytes()[:300]
    accept(command(*train(f"data={path}", "output=out")), damage, place / "out")


# Run files ------------------------------------------------------------------------------------------------------------


def keys_of(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, with its tables' names."""
    for name, value in table.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


@numbered("setting", 120)
def test_settings(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    """An unexpected value in any key of a resolved run file."""
    import tomllib

    import tomli_w

    from tutelage.config import load_config, to_toml

    random_numbers = random.Random(f"setting {seed}")
    content = tomllib.loads(to_toml(load_config(place / "run.toml", [*SMALL, UNJUDGED, "output=out"])))
    # A number so large that the run takes for ever is no fault of the file.
    endless = {"steps", "rollout.prompts_per_step", "rollout.samples_per_prompt", "rollout.max_new_tokens"}
    key = random_numbers.choice(sorted(set(keys_of(content))))
    value = damage_value(random_numbers)
    while value is None or (key in endless and isinstance(value, int) and value == 10**12):
        value = damage_value(random_numbers)
    *tables, name = key.split(".")
    holder = content
    for table in tables:
        holder = holder[table]
    holder[name] = json.loads(json.dumps(value).replace("null", '"null"'))
    try:
        text = tomli_w.dumps(content)
    except ValueError:  # an integer that TOML has no room for
        text = f"{key} = {value}\n" + tomli_w.dumps({k: v for k, v in content.items() if k != key.split(".")[0]})
    replace_file(place / "run.toml", text.encode("utf-8", "surrogatepass"))
    before = {path.name for path in place.iterdir()}
    outcome = command("train", "run.toml")
    accept(outcome, f"{key} = {value!r}")
    if outcome[0] == 2:
        assert {path.name for path in place.iterdir()} == before, f"{key} = {value!r}"


@numbered("run-file", 30)
def test_run_files(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    random_numbers = random.Random(f"run file {seed}")
    content = damage_bytes((place / "run.toml").read_bytes(), random_numbers)
    replace_file(place / "run.toml", content)
    accept(command(*train("output=out")), content[:300], place / "out")


# Runs that exist ------------------------------------------------------------------------------------------------------


@numbered("run", 40)
def test_runs_that_exist(
    place: Path, whole_run: Path, command: Callable[..., tuple[int, str]], seed: int, home: Path
) -> None:
    """A damaged run is resumed from what is sound in it, or refused; what it holds is still there."""
    random_numbers = random.Random(f"run {seed}")
    shutil.copytree(whole_run.parents[1], place / "run")
    files = sorted(path for path in (place / "run").rglob("*") if path.is_file())
    path = random_numbers.choice(files)
    content = path.read_bytes()
    if path.suffix == ".json" and random_numbers.random() < 0.6:
        content = json.dumps(damage_json(json.loads(content), random_numbers)).encode()
    else:
        content = damage_bytes(content, random_numbers)
    replace_file(path, content)
    kept = {file.relative_to(place): file.read_bytes() for file in (place / "run").rglob("*.safetensors")}
    verb = random_numbers.choice(["resume", "resume", "evaluate", "export", "report"])
    if verb == "resume":
        overrides = settings(*SMALL[1:], UNJUDGED, "steps=2", "output=run")
        outcome = command("train", home / "run.toml", "--resume", *overrides)
    elif verb == "evaluate":
        task = ["--task", "prompts.jsonl", "--samples", "1", "--max-new-tokens", "2", "--limit", "1"]
        outcome = command("evaluate", "run/checkpoints/step-000001", *task)
    elif verb == "export":
        outcome = command("export", "run", "--output", "exported")
    else:
        outcome = command("report", "run")
    accept(outcome, f"{verb} {path.relative_to(place)} {content[:200]!r}")
    if outcome[0] == 2:
        there = {file.read_bytes() for file in (place / "run").rglob("*.safetensors")}
        assert set(kept.values()) <= there, "weights are gone"


# Servers --------------------------------------------------------------------------------------------------------------


@numbered("server", 50)
def test_servers(place: Path, command: Callable[..., tuple[int, str]], seed: int) -> None:
    """A teacher's server whose answers are damaged from some request on."""
    from tutelage.models import load_language_model, load_tokenizer

    random_numbers = random.Random(f"server {seed}")
    teacher = load_language_model(str(place / "teacher"), load_tokenizer(str(place / "teacher")))
    sound = vllm_of(teacher, context=2048)
    first_damaged, seen = random_numbers.randrange(4), []
    as_bytes = random_numbers.random() < 0.3

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        code, said = sound(path, body)
        seen.append(path)
        if len(seen) <= first_damaged:
            return code, said
        content = (
            damage_bytes(json.dumps(said).encode(), random_numbers) if as_bytes else damage_json(said, random_numbers)
        )
        return random_numbers.choice([code, code, code, 500, 404, 200, 302]), content

    server = Fake(answer)
    try:
        overrides = [f"teacher.server={server.url}", "teacher.retries=0", "teacher.timeout_seconds=5", "policy=student"]
        support = "divergence={name='forward_kl',support='teacher_top_k',top_k=4}"
        accept(command(*train(*overrides, support, "output=out")), seen)
    finally:
        server.close()
