from __future__ import annotations

import json
import logging
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.errors import ConfigurationError, DataError
from tutelage.tasks import Columns, Privilege, Problem, load_problems, name_and_split

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    """Writes rows to a JSONL file and reads them back as problems."""

    def load(*rows: Any, **options: Any) -> list[Problem]:
        columns = {each.name: options.pop(each.name) for each in fields(Columns) if each.name in options}
        return load_problems(write_jsonl(tmp_path / "rows.jsonl", list(rows)), Columns(**columns), **options)

    return load


def test_rows_keep_their_order_text_and_answers(rows: Any) -> None:
    problems = rows(
        {"problem": "  b? ", "answer": "142.0"}, {"problem": "a?", "answer": 7}, {"problem": "c", "answer": 0.5}
    )
    assert problems == [
        Problem("rows/0", "  b? ", "142.0"),
        Problem("rows/1", "a?", "7"),
        Problem("rows/2", "c", "0.5"),
    ]


def test_ids_are_the_rows_own_where_they_name_every_row_once(rows: Any) -> None:
    assert [p.id for p in rows({"id": "x", "problem": "a", "answer": 1}, {"id": 2, "problem": "b", "answer": 1})] == [
        "x",
        "2",
    ]
    repeated = rows({"id": "x", "problem": "a", "answer": 1}, {"id": "x", "problem": "b", "answer": 1})
    assert [p.id for p in repeated] == ["rows/0", "rows/1"]
    partial = rows({"id": "x", "problem": "a", "answer": 1}, {"problem": "b", "answer": 1})
    assert [p.id for p in partial] == ["rows/0", "rows/1"]


def test_limit_reads_the_first_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "a", "answer": "1"}\nnot JSON\n')
    assert len(load_problems(path, limit=1)) == 1
    with pytest.raises(ConfigurationError, match=r"data\.limit is 0; expected at least 1"):
        load_problems(path, limit=0)


def test_json_list_blank_lines_bom_and_line_separators(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"problem": "a", "answer": "1"}]')
    assert load_problems(str(tmp_path / "list.json")) == [Problem("list/0", "a", "1")]
    text = '\ufeff{"problem": "a\u2028b", "answer": "1"}\n\n{"problem": "c", "answer": "2"}'
    (tmp_path / "lines.jsonl").write_text(text, encoding="utf-8")
    assert [p.text for p in load_problems(tmp_path / "lines.jsonl")] == ["a\u2028b", "c"]


def test_answers_may_be_left_out(rows: Any) -> None:
    for nothing in (None, ""):
        assert rows({"problem": "a"}, answer=nothing) == [Problem("rows/0", "a", None)]


def test_a_list_with_one_answer_is_that_answer(rows: Any) -> None:
    assert rows({"problem": "a", "answer": ["$2n$"]})[0].answer == "$2n$"


def test_messages_in_every_form(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy
    import pyarrow

    dict_of_lists = {"role": ["system", "user"], "content": ["Be brief.", "1 + 1?"]}
    with_more_keys = [{**message, "name": None} for message in CHAT]
    in_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"], "image": None}]} for m in CHAT]
    for cell in (CHAT, json.dumps(CHAT), dict_of_lists, with_more_keys, in_parts, json.dumps(in_parts)):
        (problem,) = rows({"problem": cell, "answer": "2"})
        assert problem.prompt == tuple(CHAT)
    for cell in (numpy.array(CHAT, dtype=object), pyarrow.scalar(CHAT)):
        monkeypatch.setattr("datasets.load_dataset", lambda *_, _cell=cell, **__: [{"problem": _cell, "answer": 2}])
        assert load_problems("owner/chats")[0].prompt == tuple(CHAT)


def test_text_that_only_looks_like_json_is_text(rows: Any) -> None:
    texts = ["[asy] draw((0,0)); [/asy]", "[1, 2, 3]", "[]", "[" * 100_000]
    assert [p.prompt for p in rows(*({"problem": text, "answer": 1} for text in texts))] == texts


def test_a_problem_reads_as_text_and_as_messages() -> None:
    assert Problem("a", "1 + 1?").messages == ({"role": "user", "content": "1 + 1?"},)
    assert Problem("a", tuple(CHAT)).messages == tuple(CHAT)
    assert Problem("a", tuple(CHAT)).text == "Be brief.\n\n1 + 1?"


def test_dotted_columns_step_into_values_unless_a_column_has_that_very_name(rows: Any) -> None:
    row = {"q": {"text": "a"}, "gold": {"final": {"value": 3}}}
    (problem,) = rows(row, prompt="q.text", answer="gold.final.value")
    assert (problem.prompt, problem.answer) == ("a", "3")
    assert rows({"q.text": "b", "q": {"text": "a"}}, prompt="q.text", answer=None)[0].prompt == "b"


VERL_ROW = {"prompt": CHAT, "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": "7"}}


def test_verl_layout_needs_no_column_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_parquet(tmp_path / "verl.parquet", [VERL_ROW, VERL_ROW])
    with caplog.at_level(logging.INFO):
        problems = load_problems(path)
    assert problems == [Problem("verl/0", tuple(CHAT), "2"), Problem("verl/1", tuple(CHAT), "2")]
    assert "verl's layout: reading prompt and reward_model.ground_truth" in caplog.text
    assert load_problems(path, Columns(answer=None))[0] == Problem("verl/0", tuple(CHAT), None)
    assert load_problems(path, Columns("prompt", "reward_model.ground_truth")) == problems


def test_verl_layout_is_not_guessed_against_what_was_asked_or_is_there(rows: Any) -> None:
    with pytest.raises(DataError, match="no column 'answer'"):
        rows(VERL_ROW, prompt="prompt")
    assert rows({**VERL_ROW, "problem": "own", "answer": "1"})[0] == Problem("rows/0", "own", "1")


def test_hub_data_sets_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> list[dict[str, Any]]:
        calls.append((name, configuration, split))
        return [{"question": "a", "answer": "1"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_problems("openai/gsm8k:main", Columns("question"), split="test") == [Problem("gsm8k/0", "a", "1")]
    assert load_problems("squad-v1.1", Columns("question"))[0].id == "squad-v1.1/0"
    assert calls == [("openai/gsm8k", "main", "test"), ("squad-v1.1", None, "train")]


def test_datasets_is_not_imported_for_files(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    assert rows({"problem": "a", "answer": 1})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl is not there .*; expected a file\. Check data\.path"):
        load_problems(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("")
    if name.endswith("parquet"):
        write_parquet(path, [{"problem": "a"}])
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=rf"{name} has no rows; expected at least one problem\. Check that data\.path"):
        load_problems(path)


@pytest.mark.parametrize("name", ["table.csv", "notes.txt", "made.of.lines"])
def test_unsupported_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("problem,answer\n")
    with pytest.raises(DataError, match=r"expected a \.jsonl, \.json or \.parquet file, or a hub data set"):
        load_problems(tmp_path / name)


def test_paths_that_are_neither_files_nor_names_of_data_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a directory; expected"):
        load_problems(tmp_path)
    with pytest.raises(DataError, match=r"ending in '\.csv'; expected"):
        load_problems("missing/table.csv")
    with pytest.raises(DataError, match="no name of a data set; expected"):
        load_problems("/data/gsm8k/train")


@pytest.mark.parametrize(
    "error", [FileNotFoundError("not on the hub"), ValueError("bad split"), ConnectionError("offline")]
)
def test_hub_errors_say_what_to_check(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match=rf"'nobody/nothing', no file here.*{error}.*Check data\.path, data\.split"):
        load_problems("nobody/nothing")


@pytest.mark.parametrize("line", [b"{'problem': 1}", b"\xff\xfe", b"[" * 100_000, b'{"problem": "cut'])
def test_a_line_that_is_not_json_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"problem": "a", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=r"p\.jsonl, line 3 is not JSON .*; expected one JSON object per line\. Repair"):
        load_problems(path)


def test_json_that_is_not_objects(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 2\) is a JSON list: \[1\]; expected an object"):
        rows({"problem": "a", "answer": 1}, [1])
    (tmp_path / "p.json").write_text('{"problem": "a"}')
    with pytest.raises(DataError, match="holds a JSON dict; expected a list of objects"):
        load_problems(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(DataError, match=r"is not JSON .*needs the ending \.jsonl"):
        load_problems(tmp_path / "p.json")


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match=r"cannot be read as Parquet .*; expected a complete \.parquet file\. Fetch"):
        load_problems(tmp_path / "p.parquet")


def test_a_row_without_the_prompt_column(rows: Any) -> None:
    message = (
        r"row 1 \(line 2\) has no column 'problem'; it has 'problems', 'answer', 'info\.source'\."
        r" Expected data\.prompt_column to name one; did you mean 'problems'\? Set data\.prompt_column to it\."
    )
    with pytest.raises(DataError, match=message):
        rows({"problem": "a", "answer": 1}, {"problems": "b", "answer": 1, "info": {"source": "x"}})
    with pytest.raises(DataError, match=r"it has 'zzz'\. .* set data\.prompt_column to one of these"):
        rows({"zzz": 1})


def test_a_row_without_the_answer_column(rows: Any) -> None:
    with pytest.raises(
        DataError, match=r"no column 'answer'; it has 'problem', 'label'\. .*data\.answer_column.*or to \"\""
    ):
        rows({"problem": "a", "label": 1})


def test_nested_columns_are_offered_as_the_nearest(rows: Any) -> None:
    with pytest.raises(DataError, match=r"did you mean 'reward_model\.ground_truth'\? Set data\.answer_column to it"):
        rows(VERL_ROW, prompt="prompt", answer="reward_model.ground_thruth")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("  \n", "only white space in column 'problem'; expected a question"),
        ("\ud83d", "half of a surrogate pair in column 'problem'"),
        (None, r"nothing \(null\) in column 'problem'; expected a value"),
        (12, "holds 12; expected text, or a list of messages"),
        ([], "an empty list of messages; expected a conversation"),
        ([{"role": "user"}], "expected text, or a list of messages"),
        ([{"role": "user", "content": [{"type": "image"}]}], "expected text, or a list of messages"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}], "expected text, or a list of messages"),
        ([{"role": "user", "content": " "}], "only white space in the last message"),
        ([*CHAT, {"role": "assistant", "content": "2"}], "an assistant's message at its end"),
    ],
)
def test_prompts_that_cannot_be_used(rows: Any, cell: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"row 0 \(line 1\).*{message}"):
        rows({"problem": cell, "answer": 1})


@pytest.mark.parametrize("answer", ["", " ", float("nan"), [], ["1", "2"], {"value": {}}])
def test_answers_that_cannot_be_used(rows: Any, answer: Any) -> None:
    with pytest.raises(DataError, match=r"as its answer; expected text or a number\. .*data\.answer_column"):
        rows({"problem": "a", "answer": answer})
    with pytest.raises(DataError, match=r"nothing \(null\) in column 'answer'.*data\.answer_column"):
        rows({"problem": "a", "answer": None})


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not on this machine")
def test_real_data_sets_load_with_their_path_alone() -> None:
    dapo = load_problems(SHARED_DATA / "prompts" / "dapo_math_17k.parquet")
    assert (len(dapo), dapo[0].id, dapo[0].answer) == (17_917, "dapo_math_17k/0", "34")
    assert len({problem.text for problem in dapo}) == 17_398  # its duplicates are the user's to know about, and kept
    math = load_problems(SHARED_DATA / "benchmarks" / "math500.jsonl", limit=5)
    assert [problem.id for problem in math] == [f"math500/{row}" for row in range(5)]


# --- text that cannot be kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "fault"), [("7 \ud83d", "half of a surrogate pair"), ("7\0", "a NUL character")])
@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"problem": "BAD", "answer": "1"}, "column 'problem'"),
        ({"problem": "a", "answer": "BAD"}, "column 'answer'"),
        ({"problem": "a", "answer": ["BAD"]}, "column 'answer'"),
        ({"id": "BAD", "problem": "a", "answer": "1"}, "column 'id'"),
        ({"problem": "a", "answer": "1", "expert": "BAD"}, "column 'expert'"),
        ({"problem": [{"role": "system", "content": "BAD"}, CHAT[1]], "answer": "1"}, "a message of column 'problem'"),
        ({"problem": [{"role": "BAD", "content": "x"}, CHAT[1]], "answer": "1"}, "a role of column 'problem'"),
        ({"problem": [CHAT[0], {"role": "user", "content": "BAD"}], "answer": "1"}, "the last message of column"),
    ],
    ids=["prompt", "answer", "answer in a list", "id", "teacher", "system message", "role", "last message"],
)
def test_text_that_cannot_be_kept_is_refused_by_row(rows: Any, row: Any, what: str, bad: str, fault: str) -> None:
    spoiled = json.loads(json.dumps(row).replace("BAD", json.dumps(bad)[1:-1]))
    good = {"id": "x", "problem": "a", "answer": 1, "expert": ""}
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 1 \(line 2\) has {fault} in {what}"):
        rows(good, spoiled, teacher="expert")


def test_whole_emoji_and_other_scripts_are_kept(rows: Any) -> None:
    (problem,) = rows({"problem": "\ud83d\ude00 größer \U0001f600?", "answer": "½ \ud83d\ude00"})
    assert problem.text == "😀 größer 😀?" and problem.answer == "½ 😀"


def test_parquet_text_that_is_no_unicode_is_refused_by_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"a", b"b", b"\xff\xfe", b"d"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"problem": texts, "answer": ["1", "2", "3", "4"]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet, row 2 has text that is not UTF-8 .*; expected valid Unicode"):
        load_problems(tmp_path / "p.parquet")
    assert len(load_problems(tmp_path / "p.parquet", limit=2)) == 2


# --- columns that were not asked for ----------------------------------------------------------------------------------


def test_of_parquet_only_named_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    row = {"id": "x", "problem": "a", "answer": "1", "route": "r", "picture": "p" * 100, "reward_model": {"style": "s"}}
    path = write_parquet(tmp_path / "p.parquet", [row])
    asked: list[list[str] | None] = []
    iter_batches = pyarrow.parquet.ParquetFile.iter_batches

    def noting(file: Any, *, batch_size: int, columns: list[str] | None) -> Any:
        asked.append(columns)
        assert batch_size <= 64
        return iter_batches(file, batch_size=batch_size, columns=columns)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", noting)
    assert load_problems(path, Columns(teacher="route")) == [Problem("x", "a", "1", "r")]
    assert asked == [["id", "problem", "answer", "route", "reward_model"]]


def test_of_a_text_that_will_be_dropped_the_beginning_is_kept(tmp_path: Path) -> None:
    system, short = {"role": "system", "content": "s"}, {"role": "user", "content": "12345"}
    cells = ["123456789", "12345", [system, {"role": "user", "content": "123456789"}], [system, short]]
    path = write_jsonl(tmp_path / "p.jsonl", [{"problem": cell, "answer": 1} for cell in cells])
    prompts = [problem.prompt for problem in load_problems(path, max_characters=5)]
    assert prompts == ["123456", "12345", (system, {"role": "user", "content": "123456"}), (system, short)]


def test_a_parquet_file_without_the_column_names_all_that_it_has(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", [{"question": "a", "gold": {"final": "1"}, "tags": ["x"]}])
    message = r"row 0 has no column 'problem'; it has 'question', 'gold\.final', 'tags'\. Expected data\.prompt_column"
    with pytest.raises(DataError, match=message):
        load_problems(path)
    assert load_problems(path, Columns("question", "gold.final"))[0].answer == "1"


def test_of_a_hub_data_set_only_named_columns_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    whole = datasets.Dataset.from_list([{"problem": "a", "answer": "1", "picture": "p"}])
    chosen: list[list[str]] = []

    class Noting:
        column_names = whole.column_names

        def select_columns(self, names: list[str]) -> Any:
            chosen.append(names)
            return whole.select_columns(names)

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Noting())
    assert load_problems("owner/pictures") == [Problem("pictures/0", "a", "1")]
    assert chosen == [["problem", "answer"]]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_json_number_is_an_answer_as_it_is_written(tmp_path: Path, ending: str) -> None:
    written = ["0.00001", "1e16", "6.02e23", "2.50", "-0.0", "123456789012345678901234567890", "true", "false"]
    written += ["0.1234567890123456789012345"]
    lines = [f'{{"problem": "?", "answer": {number}}}' for number in written]
    path = tmp_path / f"numbers.{ending}"
    path.write_text("\n".join(lines) if ending == "jsonl" else f"[{', '.join(lines)}]")
    assert [problem.answer for problem in load_problems(path)] == written


def test_a_parquet_number_keeps_its_digits(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    numbers = {0.00001: "0.00001", 1e16: "10000000000000000", 6.02e23: "6.02E+23", 0.1: "0.1", 18.0: "18.0"}
    path = tmp_path / "numbers.parquet"
    table = pyarrow.table({"problem": ["?"] * len(numbers), "answer": list(numbers)})
    pyarrow.parquet.write_table(table, path)
    assert [problem.answer for problem in load_problems(path)] == list(numbers.values())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_an_answer_that_is_no_number_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text(f'{{"problem": "?", "answer": {number}}}')
    with pytest.raises(DataError, match="as its answer; expected text or a number"):
        load_problems(path)


# --- what the teacher alone reads ------------------------------------------------------------------------------------

SOLVED = {"problem": "1 + 1?", "answer": "2", "solution": "{prompt} is 2."}


def test_privileged_text_is_put_beside_the_question_for_the_teacher(rows: Any) -> None:
    (problem,) = rows(SOLVED, privilege=Privilege("solution"))
    assert problem.prompt == "1 + 1?" and problem.for_teacher.prompt == "1 + 1?\n\n{prompt} is 2."
    (problem,) = rows(SOLVED, privilege=Privilege("solution", "Solved: {privileged}\nNow: {prompt}"))
    assert problem.for_teacher.prompt == "Solved: {prompt} is 2.\nNow: 1 + 1?"
    (plain,) = rows(SOLVED)
    assert plain.for_teacher is plain


def test_in_messages_the_last_one_of_the_user_changes_and_nothing_else(rows: Any) -> None:
    turns = [*CHAT, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Sure?"}]
    (problem,) = rows(SOLVED | {"problem": turns, "solution": "Yes."}, privilege=Privilege("solution"))
    assert list(problem.prompt) == turns
    assert list(problem.for_teacher.prompt) == [*turns[:-1], {"role": "user", "content": "Sure?\n\nYes."}]


def test_a_prompt_of_the_teachers_own_outranks_the_template(rows: Any) -> None:
    both = Privilege("solution", teacher_prompt_column="for_teacher")
    own, without = rows(SOLVED | {"for_teacher": CHAT}, SOLVED, privilege=both)
    assert list(own.for_teacher.prompt) == CHAT and without.for_teacher.prompt == "1 + 1?\n\n{prompt} is 2."
    with pytest.raises(DataError, match=r"no column 'for_teacher'.*data\.teacher_prompt_column"):
        rows(SOLVED, privilege=Privilege(teacher_prompt_column="for_teacher"))


@pytest.mark.parametrize("nothing", [None, "", "  \n", {"a": 1}])
def test_a_row_without_privilege_is_refused(rows: Any, nothing: Any) -> None:
    with pytest.raises(DataError, match=r"row 1.* 'solution'.*Complete or remove the row"):
        rows(SOLVED, SOLVED | {"solution": nothing}, privilege=Privilege("solution"))


def test_a_template_has_a_place_for_both_texts() -> None:
    for template, missing in (("{prompt}", "privileged"), ("{privileged}", "prompt")):
        with pytest.raises(ConfigurationError, match=rf"data\.privileged_template is .*without {{{missing}}}"):
            Privilege("solution", template)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies on the hub, without a script: a card that names two configurations, and Parquet files."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "sums"
    for name, count in (("main/train", 5), ("main/test", 2), ("other/train", 1)):
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, [{"problem": f"{name} {i}", "answer": f"#### {i}"} for i in range(count)])
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: main\n  data_files:\n"
        "  - {split: train, path: main/train-*}\n  - {split: test, path: main/test-*}\n"
        "- config_name: other\n  data_files:\n  - {split: train, path: other/train-*}\n---\n"
    )
    return folder


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [f"main/train {i}" for i in range(5)]),
        ("test", ["main/test 0", "main/test 1"]),
        ("train[1:3]", ["main/train 1", "main/train 2"]),
        ("train[:1]+test", ["main/train 0", "main/test 0", "main/test 1"]),
    ],
)
def test_a_copy_of_a_hub_data_set_is_read_as_the_hubs(copied: Path, split: str, expected: list[str]) -> None:
    found = load_problems(f"{copied}:main", split=split)
    assert [problem.prompt for problem in found] == expected
    assert found[0] == Problem("sums/0", expected[0], found[0].answer)


def test_what_a_data_set_does_not_have_is_named(copied: Path) -> None:
    with pytest.raises(DataError, match=r"a folder here, but it has no such data set with split 'dev' .*train.*test"):
        load_problems(f"{copied}:main", split="dev")
    with pytest.raises(DataError, match=r"no such data set with split 'train' .*'?mian'? not found.*main"):
        load_problems(f"{copied}:mian")
    (copied / "README.md").unlink()
    with pytest.raises(
        DataError, match=r"a directory; expected .* or a folder with a copy of one \(README.md or data\)"
    ):
        load_problems(copied)


def test_a_data_set_without_the_package_that_reads_it(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"the package `datasets` reads, which is not installed .*pip install datasets"):
        load_problems(f"{copied}:main")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/gsm8k:main[train]", ("openai/gsm8k:main", "train")),
        ("openai/gsm8k:main[train[:100]]", ("openai/gsm8k:main", "train[:100]")),
        ("gsm8k[train+test]", ("gsm8k", "train+test")),
        ("openai/gsm8k:main", ("openai/gsm8k:main", None)),
        ("rows[1].jsonl", ("rows[1].jsonl", None)),
        ("rows[]", ("rows[]", None)),
    ],
)
def test_brackets_at_the_end_are_the_split(source: str, expected: tuple[str, str | None]) -> None:
    assert name_and_split(source) == expected
