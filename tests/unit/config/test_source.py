"""Run files as editors and shells leave them, and values that no setting can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.config import load_config, read_run_file, resolve_config
from tutelage.config.source import grid_texts, items_of, override_texts, plain_value, read_table, value_of
from tutelage.errors import ConfigurationError

TEXT = 'name = "größe"\nsteps = 7\n'
NEEDED = {"student": "small", "teacher": "large", "data": "prompts.jsonl"}


def refusal(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_table(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_unicode_that_says_what_it_is_can_be_read(tmp_path: Path, encoding: str, line_end: str) -> None:
    (tmp_path / "run.toml").write_bytes(TEXT.replace("\n", line_end).encode(encoding))
    assert read_table(tmp_path / "run.toml") == {"name": "größe", "steps": 7}


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\xff\xfe"])
def test_both_byte_orders_can_be_read(tmp_path: Path, mark: bytes) -> None:
    order = "utf-16-be" if mark == b"\xfe\xff" else "utf-16-le"
    (tmp_path / "run.toml").write_bytes(mark + TEXT.encode(order))
    assert read_table(tmp_path / "run.toml")["name"] == "größe"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (TEXT.encode("utf-16-le"), "zero bytes, as UTF-16 without a byte order mark has"),
        ("steps = 7\nname = 'größe'\n".encode("latin-1"), "not in UTF-8 (line 2 has the byte 0xf6). Save it as UTF-8"),
        (b"\xff\xfe\x00", "not in UTF-16"),
        (b"a = " + b"[" * 2000 + b"]" * 2000, "nested more than 32 deep"),
        (b".".join([b"a"] * 2000) + b" = 1", "nested more than 32 deep"),
        (b"a = " + b"{a = " * 2000 + b"1" + b"}" * 2000, "nested more than 32 deep"),
        (b"steps = " + b"9" * 5000, "is not valid TOML"),
        (b"steps = 0x" + b"f" * 9000, "steps is a number of 36000 bits"),
        (b"steps = 9223372036854775808", "steps is a number of 64 bits"),
        (b"[optimizer]\nlearning_rate = nan", "optimizer.learning_rate is nan; expected a finite number"),
        (b"[rollout]\ncache_gib = -inf", "rollout.cache_gib is -inf; expected a finite number"),
        (b"[data.chat_template_kwargs]\nx = [1, {y = inf}]", "data.chat_template_kwargs.x[1].y is inf"),
        (b"name = 2026-01-31", "name is the date or time 2026-01-31"),
        (b"name = 07:30:00", "name is the date or time 07:30:00"),
        (b"#" * (16 * 2**20 + 1), "more than 16777216 bytes"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    assert fact in refusal(tmp_path / "run.toml")


def test_a_folder_is_no_run_file(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("0.1", 0.1),
        (".02", 0.02),
        ("-.5e-3", -0.0005),
        ("true", True),
        ('"7"', "7"),
        ("[1, 2]", [1, 2]),
        ("[1,\n 2]", [1, 2]),
        ("{a = 1}", {"a": 1}),
        ("", ""),
        ("a/b c", "a/b c"),
        ("2026-01-31", "2026-01-31"),
        # Never the half of it:
        ("5\nseed = 3", "5\nseed = 3"),
        ("5 # five", "5 # five"),
        ("run #1", "run #1"),
        ("1]\nseed = [2", "1]\nseed = [2"),
        ("1, 2", "1, 2"),
        ("1,", "1,"),
        ("You add.\nThen you answer.", "You add.\nThen you answer."),
        ("9" * 5000, "9" * 5000),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
    ],
)
def test_an_override_is_taken_whole(text: str, value: Any) -> None:
    assert value_of(text) == value


def test_the_items_of_a_grid_are_taken_whole() -> None:
    assert items_of("1, 'a', [2]") == [1, "a", [2]]
    assert items_of("a, b") is None and items_of("1]\nx = [2") is None


def test_a_line_break_in_an_override_loses_nothing() -> None:
    config = resolve_config(NEEDED, ["data.system_prompt=You add.\nThen you answer."])
    assert config.data.system_prompt == "You add.\nThen you answer."
    with pytest.raises(ConfigurationError, match=r"steps is '5\\nseed = 3'; it should be a valid integer"):
        resolve_config(NEEDED, ["steps=5\nseed = 3"])


@pytest.mark.parametrize("override", ["output=2024", "name=7", "data=3", "student.path=1e5", "teacher=2.50"])
def test_a_number_given_for_a_text_is_that_text(override: str) -> None:
    key, _, text = override.partition("=")
    found = resolve_config(NEEDED, [override]).model_dump()
    for part in key.split("."):
        found = found[part]
    assert (found["path"] if isinstance(found, dict) else found) == text


def test_broken_unicode_is_refused_wherever_it_stands() -> None:
    for override in ("data.system_prompt=a\udcffb", "data.chat_template_kwargs.x=\ud800", "name=\udcff"):
        with pytest.raises(ConfigurationError, match="not valid Unicode") as caught:
            resolve_config(NEEDED, [override])
        str(caught.value).encode()


def test_a_tilde_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "run.toml").write_text(
        """
output = "~/out"
student = "~/s"
data = { path = "~/p.jsonl", scores = "~/scores" }
reference = "~/r"
[teacher]
path = "~/t"
experts = ["~/e", { path = "~/e2", base = "~/b" }]
routes = { code = "~/c" }
[evaluation]
sets = ["~/one.jsonl", { path = "~/two.jsonl" }]
[vllm]
weights_folder = "~/w"
"""
    )
    config = load_config(tmp_path / "run.toml")
    teacher, data = config.teacher, config.data
    paths = [config.output, config.student.path, data.path, data.scores, config.reference.path, teacher.path]
    paths += [teacher.experts[0].path, teacher.experts[1].path, teacher.experts[1].base, teacher.routes["code"].path]
    paths += [config.evaluation.sets[0].path, config.evaluation.sets[1].path, config.vllm.weights_folder]
    assert len(paths) == 13 and all(path is not None and path.startswith("/home/me/") for path in paths)
    assert resolve_config(NEEDED, ["output=~/x"]).output_folder == "/home/me/x"


@pytest.mark.parametrize("key", ["output", "student.path", "data.path", "data.scores", "evaluation.sets[0].path"])
def test_a_path_that_cannot_be_is_named_by_its_key(key: str) -> None:
    override = 'evaluation.sets=[{path="a\\u0000"}]' if "sets" in key else f'{key}="a\\u0000"'
    with pytest.raises(ConfigurationError) as caught:
        resolve_config(NEEDED, [override])
    assert str(caught.value).startswith(f"{key} is 'a\\x00'; a path has no")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".x", "", "a\\u0000"])
def test_a_run_is_named_so_that_it_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^name is .* under which no file can be kept"):
        resolve_config(NEEDED, [f'name="{name}"'])


@pytest.mark.parametrize(
    ("override", "fact"),
    [
        ("runtime.threads=1000000", "runtime.threads is 1000000; it should be less than or equal to 1024"),
        ("rollout.prompts_per_step=1000000000000", "4000000000000 answers in every step; expected at most 1048576"),
        ("rollout.max_new_tokens=1000000000000000000", "rollout.max_new_tokens is 1000000000000000000; no model"),
        ("evaluation.max_new_tokens=1000000000000", "evaluation.max_new_tokens is 1000000000000; it should be less"),
        ("evaluation.num_samples=1000000000", "evaluation.num_samples is 1000000000; it should be less than"),
        ("student.adapter={rank=100000000}", "student.adapter.rank is 100000000; expected at most"),
        ("teacher.timeout_seconds=1e300", "teacher.timeout_seconds is 1e+300; it should be less than"),
        ("runtime.timeout_seconds=1e300", "runtime.timeout_seconds is 1e+300; it should be less than"),
        ("vllm.timeout_seconds=0", "vllm.timeout_seconds is 0"),
        ("seed=-1", "seed is -1; it should be greater than or equal to 0"),
        ("steps=10000000000000000000000", "steps is a number of 74 bits"),
        ("rollout.cache_gib=inf", "rollout.cache_gib is inf; expected a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate is nan; expected a finite number"),
    ],
)
def test_absurd_numbers_are_refused(override: str, fact: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_config(NEEDED, [override])
    assert fact in str(caught.value)


VALUES = [
    0.05, 1e-5, 7, True, "runs/x", 'a "quoted" = name\nof two lines', "2026", "größe", [], [1, 2.5, "x"],
    {"a b": {"c": [1]}}, {"schedule": "linear", "start": 0.05, "steps": [{"x": 1}]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_of_python_is_read_back_as_it_was(value: Any) -> None:
    (text,) = override_texts({"key.path": value})
    key, _, written = text.partition("=")
    assert (key, value_of(written)) == ("key.path", value)
    (text,) = grid_texts({"key": [value, 1]})
    assert items_of(text.partition("=")[2]) == [value, 1]


def test_numpy_and_paths_become_what_toml_has() -> None:
    found = plain_value(
        {"radii": np.linspace(0, 1, 3), "steps": np.int64(3), "path": Path("a/b"), "t": (1, range(2))}, ""
    )
    assert found == {"radii": [0.0, 0.5, 1.0], "steps": 3, "path": "a/b", "t": [1, [0, 1]]}
    assert type(found["radii"][1]) is float and type(found["steps"]) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "policy.kl_radius is None of type NoneType; expected text, a number"),
        ({"start": object()}, "policy.kl_radius.start is <object"),
        ([1, {1, 2}], "policy.kl_radius[1] is {1, 2} of type set"),
    ],
)
def test_a_value_that_no_setting_has_is_refused_by_its_key(value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        override_texts({"policy.kl_radius": value})
    assert str(refusal.value).startswith(message)


def test_texts_of_overrides_stay_and_one_may_stand_alone() -> None:
    assert override_texts(["a=1", "b=2"]) == ["a=1", "b=2"] and override_texts("a=1") == grid_texts("a=1") == ["a=1"]


def test_a_table_is_copied_and_gets_a_name() -> None:
    table = {**NEEDED, "rollout": {"prompts_per_step": 3}}
    read = read_run_file(table)
    read["rollout"]["prompts_per_step"] = 4
    assert table["rollout"] == {"prompts_per_step": 3} and read["name"] == "run"
    config = load_config(table, {"steps": np.int64(7), "student": Path("other"), "policy.kl_radius": np.float64(0.1)})
    assert (config.steps, config.student.path, config.policy["kl_radius"]) == (7, "other", 0.1)
    assert load_config(table, {"steps": 7}) == load_config(table, ["steps=7"])
    with pytest.raises(ConfigurationError, match="name is 'a/b', under which no file can be kept"):
        read_run_file({**NEEDED, "name": "a/b"})
