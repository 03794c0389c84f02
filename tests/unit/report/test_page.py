"""A report is one file that loads nothing, tells what the files of the runs say, and never replaces another's file."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tomli_w
from typer.testing import CliRunner

from tests.support.browser import MISSING, Browser, browser
from tests.support.run_folders import metrics_of, sample_of, write_lines, write_run
from tutelage.cli import app
from tutelage.errors import DataError, OutputExistsError
from tutelage.report import default_path, plot_run, watch_report, write_report
from tutelage.report.answers import side_by_side
from tutelage.report.sources import grouped, is_finished, read_sources
from tutelage.report.tables import configuration_differences, problem_changes, summary

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "opd", name="opd", budget=0.0)
    for seed in range(2):
        write_run(folder / f"trb-{seed}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write_report([folder / "opd", folder / "trb-0", folder / "trb-1"], folder / "page.html").path


def test_it_is_one_file_without_an_address(page: Path) -> None:
    text = page.read_text()
    assert len(text) < 3_000_000
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text), "everything is inside"
    assert "url(http" not in text and "@import" not in text
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "an id names one element of the page"


def test_figures_lie_beside_it(page: Path) -> None:
    names = sorted(path.name for path in (page.parent / "page-figures").iterdir())
    for stem in ("pass-at-1", "reward", "loss", "teacher-entropy", "trust-region", "cost"):
        assert {f"{stem}.svg", f"{stem}.png"} <= set(names)
    svg = (page.parent / "page-figures" / "teacher-entropy.svg").read_text()
    assert "<text" in svg and "var(--" not in svg, "text stays text, and colours are those of paper"


def test_a_page_is_the_same_when_it_is_made_again(page: Path, folder: Path) -> None:
    before = page.read_bytes()
    write_report([folder / "opd", folder / "trb-0", folder / "trb-1"], page)
    assert page.read_bytes() == before


def test_foreign_files_stay(tmp_path: Path) -> None:
    run = write_run(tmp_path / "trb")
    (tmp_path / "page.html").write_text("<html>mine</html>")
    with pytest.raises(OutputExistsError, match="not made by tutelage"):
        write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "<html>mine</html>"
    (tmp_path / "other-figures").mkdir()
    with pytest.raises(OutputExistsError, match="other-figures"):
        write_report([run], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_where_it_goes(tmp_path: Path) -> None:
    assert default_path([tmp_path / "trb"]) == tmp_path / "trb.report.html"
    assert default_path([tmp_path / "trb", tmp_path / "opd"]) == tmp_path / "report.html"


def test_runs_that_differ_in_seed_are_one_method(folder: Path) -> None:
    runs, _ = read_sources([folder / "opd", folder / "trb-0", folder / "trb-1", folder / "trb-0"])
    assert {name: len(group) for name, group in grouped(runs).items()} == {"opd": 1, "trb": 2}
    assert [run.label for run in runs] == ["opd", "trb, seed 0", "trb, seed 1"]
    differences = configuration_differences(runs)
    assert differences is not None
    assert [[text for text, _ in row] for row in differences.rows] == [["policy.kl_radius", "0.0", "0.05"]]
    assert configuration_differences(runs[1:]) is None


def test_numbers_are_those_of_the_files(folder: Path) -> None:
    runs, _ = read_sources([folder / "trb-0", folder / "trb-1"])
    (row,) = summary(runs).rows
    assert [text for text, _ in row[:6]] == ["trb", "2", "6", "0.5 ± 0.7", "60.5 ± 0.7", "60.5 ± 0.7"]
    assert row[7][0] == "3.00 ± 0.00"


def test_problems_gained_and_lost(folder: Path) -> None:
    runs, _ = read_sources([folder / "trb-0"])
    found = [(it.before, it.after, it.gained, it.lost) for it in problem_changes(runs[0], [])]
    gained, lost = [("two", 0, 2, 2)], [("one", 2, 0, 2)]
    assert found == [(0, 3, gained, lost), (3, 6, [], []), (0, 6, gained, lost)]


def test_answers_stay_within_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "trb")
    long = [sample_of(step, 0) | {"response": "x" * 300_000} for step in range(6)]
    monkeypatch.setattr("tutelage.report.answers.MAX_LETTERS", 300_000)
    write_lines(run / "samples.jsonl", long)
    runs, _ = read_sources([run])
    views = side_by_side(runs, [])["views"]
    assert len(json.dumps(views)) <= 1_200_000 and [view["step"] for view in views] == [0, 2, 4]


def test_a_comparison_is_understood(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "c/runs/opd" / f"seed-{seed}", name="opd", seed=seed, budget=0.0)
    write_run(tmp_path / "c/runs/trb/seed-0")
    (tmp_path / "c/runs/trb/seed-1").mkdir()
    (tmp_path / "c/plan.json").write_text(json.dumps({"methods": {"opd": {}, "trb": {}}}))
    assert not write_report([tmp_path / "c"]).is_complete, "a run of it has not begun"
    record = {
        "methods": ["opd", "trb"], "measures": {"pass_at_1": "of the last checkpoint"}, "missing": [],
        "notes": ["Few."],
        "summaries": {
            "opd": {"pass_at_1": {"mean": 0.25, "spread": 0.01, "difference": None, "interval": None}},
            "trb": {"pass_at_1": {"mean": 0.5, "spread": None, "difference": 0.25, "interval": [0.2, 0.3]}},
        },
    }  # fmt: skip
    (tmp_path / "c/comparison.json").write_text(json.dumps(record))
    (tmp_path / "c/sweep.png").write_bytes(b"\x89PNG")
    report = write_report([tmp_path / "c"])
    text = report.path.read_text()
    assert report.is_complete and report.path == tmp_path / "c.report.html"
    assert "0.250 ± 0.010" in text and "+0.250\n[+0.200, +0.300]" in text and "data:image/png;base64,iVBORw==" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither metrics\.jsonl nor comparison\.json"):
        write_report([tmp_path])


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "trb"
    run.mkdir()
    turns = iter([4, 6])

    def go_on(seconds: float) -> None:
        assert seconds == 7
        if run.exists():
            for path in sorted(run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            run.rmdir()
        write_run(run, steps=next(turns))

    monkeypatch.setattr("tutelage.report.page.time.sleep", go_on)
    seen = []
    report = watch_report(
        [run], every=7, on_report=lambda made: seen.append('http-equiv="refresh"' in made.path.read_text())
    )
    assert report.is_complete and seen == [True, False], "a page of a run that goes on loads itself again"


def test_watching_a_broken_run_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, pauses = write_run(tmp_path / "trb"), []
    (run / "metrics.jsonl").write_text("no\nnumbers\n")
    monkeypatch.setattr("tutelage.report.page.time.sleep", pauses.append)
    with pytest.raises(DataError, match="line 1 is not JSON"):
        watch_report([run], every=7, on_report=lambda made: None)
    assert pauses == [7], "it may have been read while it was written, once"


def test_the_least_that_a_run_may_have(tmp_path: Path) -> None:
    run = tmp_path / "a $ <run>"
    run.mkdir()
    write_lines(run / "metrics.jsonl", [{"step": 0, "loss": 1.0, "seconds_rollout": 1.0}])
    report = write_report([run])
    assert report.is_complete, "without a run file nothing says that there is more to come"
    text = report.path.read_text()
    assert "<h1>a $ &lt;run&gt;</h1>" in text and "<run>" not in text, "a name is text, in figures too"
    assert [path.name for path in report.figures] == ["loss.svg", "loss.png", "cost.svg", "cost.png"]


def test_the_command_says_where_things_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "trb")
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "deep/page.html")])
    assert done.exit_code == 0 and str(tmp_path / "deep/page.html") in done.output
    assert (tmp_path / "deep/page-figures/loss.svg").is_file()


def test_runs_say_whether_they_are_finished(tmp_path: Path) -> None:
    runs, _ = read_sources([write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=5)])
    assert [is_finished(run) for run in runs] == [True, False]


def test_means_are_over_finished_runs(tmp_path: Path) -> None:
    runs, _ = read_sources([write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, steps=2)])
    (row,) = summary(runs).rows
    assert [text for text, _ in row[:5]] == ["trb", "1", "6", "0.0", "60.0"]
    (row,) = summary(runs[1:]).rows
    assert [text for text, _ in row[:3]] == ["trb", "1", "2"]


NODE = shutil.which("node")
HOSTILE = (
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)> &lt;b&gt;", "{{ 7 * 7 }}{% raw %} [red]x[/b]",
    "$x_1$ \\frac{ $ ^", "a\nb\tc\x1b[31m\x07", "\u202eevil\u202c\u2066\u200f", "你好 😀 مرحبا", "_hidden", "x" * 3_000,
)  # fmt: skip


def hostile_run(folder: Path, text: str) -> Path:
    """A run whose every text is the one given."""
    run = write_run(folder)
    settings = {"name": text, "steps": 6, "policy": {"name": text}}
    (run / "config.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    write_lines(run / "evaluations.jsonl", ({"step": step, "name": text, "pass_at_1": 0.5} for step in (0, 3, 6)))
    half = text + "\ud83d"  # which TOML cannot hold
    tokens = {"text": list(half[:20]), "kl": [float("nan")] * 20, "teacher_logprob": [float("-inf")] * len(half[:20])}
    of_it = {"prompt": half, "response": half, "answer": half, "tokens": tokens}
    write_lines(run / "samples.jsonl", [sample_of(step, 3) | of_it for step in range(6)])
    for step in (0, 3, 6):
        path = run / "evaluations" / f"step-{step:06d}-sums.jsonl"
        write_lines(path, [{"problem_id": half, "correct": step > 0}, {"problem_id": "other", "correct": step < 3}])
    return run


class Elements(HTMLParser):
    """The elements of a page, with what they hold, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        if self.names[-1:] == ["script"]:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    runs = [hostile_run(folder / str(place), text) for place, text in enumerate(HOSTILE)]
    for run in runs[:2]:
        assert plot_run(run).read_bytes().startswith(b"\x89PNG")
    return write_report(runs, folder / "page.html").path


def test_texts_of_a_run_add_no_element(hostile_page: Path, page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    found, plain = Elements(text), Elements(page.read_text())
    assert set(found.names) <= set(plain.names) and found.attributes <= plain.attributes
    assert found.names.count("script") == 2 and found.names.count("img") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    for shown in (
        "&lt;/script&gt;&lt;script&gt;alert(1)",
        "\\x1b[31m\\x07",
        "\\u202eevil\\u202c",
        "你好 😀 مرحبا",
        "{{ 7 * 7 }}",
    ):
        assert shown in text
    assert len(text) < 1_500_000


def test_rollouts_are_json_for_a_browser(hostile_page: Path) -> None:
    (data, *_) = [script for script in Elements(hostile_page.read_text()).scripts if script.startswith("{")]
    read = json.loads(data, parse_constant=lambda constant: pytest.fail(constant))
    assert read["runs"][0] == HOSTILE[0]
    (answer, *_) = read["views"][0]["answers"]
    assert answer["response"] == HOSTILE[0] + "\\ud83d"
    assert answer["tokens"]["teacher_logprob"] == [None] * 20, "one infinite number takes no other with it"


@pytest.mark.skipif(not NODE, reason="needs node")
def test_the_script_of_a_page_survives_what_is_odd(hostile_page: Path) -> None:
    def cards(*arguments: str) -> list[dict[str, Any]]:
        command = [str(NODE), str(Path(__file__).with_name("document.js")), str(hostile_page), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
        return list(json.loads(done.stdout))

    first, second, *_ = cards('{"step": "no", "answer": -3, "colour": "teacher"}')
    assert set(first["marks"]) == {"level3"}, "what the teacher rules out is marked most"
    assert HOSTILE[0] in first["text"] and HOSTILE[1] in second["text"]
    for memory in ("null", "3", "{", chr(34) * 2):
        assert len(cards(memory)) == 4, "one for each run that is shown"
    broken, other, *_ = cards("{}", '{"tokens": {"text": 5}}')
    assert "cannot be shown" in broken["text"] and other["text"] == second["text"]


def test_figures_with_such_names_are_xml(hostile_page: Path) -> None:
    for path in (hostile_page.parent / "page-figures").glob("*.svg"):
        letters = "".join(ElementTree.parse(path).getroot().itertext())
        assert "\\x1b[31m" in letters and "$x_1$ \\frac{ $ ^" in letters and "你好" in letters


def test_a_long_run_is_drawn_with_few_points_and_counted_in_full(tmp_path: Path) -> None:
    steps = 5_000
    run = write_run(tmp_path / "long")
    (run / "config.toml").write_text(f'name = "long"\nsteps = {steps}\n')
    dice = random.Random(0)
    loss = [dice.random() for _ in range(steps)]
    loss[1_234] = 777.0
    metrics = ({**metrics_of(step, 0, 0.05), "loss": loss[step], "seconds": 0.1 * step} for step in range(steps))
    write_lines(run / "metrics.jsonl", metrics)
    write_lines(run / "evaluations.jsonl", ({"step": n, "name": "s", "pass_at_1": n / steps} for n in range(steps + 1)))
    report = write_report([run])
    text = report.path.read_text()
    assert len(text) < 1_200_000 and "gathered into 500 stretches" in text
    (row,) = summary(read_sources([run])[0]).rows
    assert [cell for cell, _ in row[2:6]] == [f"{steps}", "0.0", "100.0", "100.0"]
    assert row[8][0] == f"{sum(0.1 * step for step in range(steps)):.0f}"
    svg = (tmp_path / "long.report-figures/loss.svg").read_text()
    assert svg.count("L ") < 4_000 and ">800<" in svg, "the axis reaches up to the spike"


def test_only_few_evaluations_are_compared_by_problem(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for step in range(7, 200):
        write_lines(run / "evaluations" / f"step-{step:06d}-sums.jsonl", [{"problem_id": "one", "correct": True}])
    changes = problem_changes(read_sources([run])[0][0], [])
    assert len(changes) == 9 and (changes[-1].before, changes[-1].after) == (0, 199)


# --- in a real browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if MISSING:
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture
def opened(window: Browser, page: Path) -> Browser:
    window.dress(width=1280, height=900)
    window.run("try { sessionStorage.clear() } catch {}")
    window.complaints(), window.requests()
    window.open(page)
    return window


def test_it_opens_from_disk_in_silence(opened: Browser, page: Path) -> None:
    assert opened.texts("h1") == ["opd against trb"]
    assert len(opened.texts("figure svg")) == 8
    assert opened.complaints() == []
    assert opened.requests() == [page.as_uri()], "nothing but the file itself was asked for"


def test_tables_are_sorted_by_clicking(opened: Browser) -> None:
    def first_column() -> list[str]:
        return opened.texts("#table-summary tbody td:first-child")

    assert first_column() == ["opd", "trb"]
    opened.click("#table-summary th:nth-child(2) button")
    assert first_column() == ["opd", "trb"], "by the number of runs"
    opened.click("#table-summary th:nth-child(2) button")
    assert first_column() == ["trb", "opd"]
    assert opened.run("return document.querySelector('#table-summary [aria-sort]').ariaSort") == "descending"
    assert opened.complaints() == []


def test_prompts_are_switched_by_clicking(opened: Browser) -> None:
    assert opened.texts(".prompt") == ["prompt 3 </script><b>bold</b>"], "text of a prompt is text"
    opened.click("[data-choice='answer:1']")
    assert opened.texts(".prompt") == ["prompt 8 </script><b>bold</b>"]
    assert opened.texts(".verdict") == ["✓ right", "✓ right"]
    opened.click("[data-choice='step:5']")
    assert opened.texts("[aria-pressed=true]") == ["5", "prompt 8, sample 0", "kept or replaced"]
    assert opened.complaints() == []


def test_tokens_say_what_happened_to_them(opened: Browser) -> None:
    assert opened.texts(".answer:first-child .replaced") == [" two"]
    assert opened.texts(".answer:first-child [data-place]") == ["one", " two", "[stop]"]
    opened.click("[data-choice='colour:teacher']")
    marks = "return [...document.querySelectorAll('.answer:first-child [data-place]')].map(x => x.className)"
    assert opened.run(marks) == ["level0", "level2", "level3"]
    opened.type(".answer:first-child div.text", "\ue014\ue014")  # arrow right, twice
    assert opened.texts(".answer:first-child .detail")[0].startswith("token 2: “ two”, replaced, teacher log q -2.000")


def test_it_fits_a_phone_and_follows_the_theme(opened: Browser) -> None:
    opened.dress(width=360, height=740)
    assert opened.run("return document.documentElement.scrollWidth") <= 360
    light = opened.run("return getComputedStyle(document.body).backgroundColor")
    opened.dress(width=360, height=740, dark=True)
    dark = opened.run("return getComputedStyle(document.body).backgroundColor")
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 24, 27)")
