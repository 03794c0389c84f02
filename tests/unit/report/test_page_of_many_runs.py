"""A folder of runs becomes one page, whose table of runs sorts and filters; checked in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import ENTER, MISSING, TAB, Browser, browser
from tests.support.run_folders import write_lines, write_run
from tutelage.errors import DataError
from tutelage.report import write_report
from tutelage.report.sources import grouped, read_sources
from tutelage.report.tables import run_table

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three methods, one level and two levels deep, one of them unfinished; a comparison; and what is none."""
    folder = tmp_path_factory.mktemp("all") / "runs"
    write_run(folder / "opd", name="opd", budget=0.0)
    for seed in range(2):
        write_run(folder / f"trb-{seed}", seed=seed)
    write_run(folder / "older/wide", name="wide", budget=0.2, steps=4)
    write_run(folder / "compared/runs/skd/seed-0", name="skd", budget=0.0)
    (folder / "compared/plan.json").write_text(json.dumps({"methods": {"skd": {}}}))
    for name, text in (("broken", "no\nnumbers\n"), ("empty", ""), (".hidden", '{"step": 0}\n')):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text(text)
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    return write_report([folder]).path


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_runs_are_found_wherever_they_lie_and_broken_ones_are_named(folder: Path) -> None:
    left_out: list[str] = []
    runs, comparisons = read_sources([folder], left_out)
    assert {name: len(group) for name, group in grouped(runs).items()} == {"skd": 1, "wide": 1, "opd": 1, "trb": 2}
    assert [comparison.folder.name for comparison in comparisons] == ["compared"]
    broken, empty = left_out
    assert "broken/metrics.jsonl, line 1 is not JSON" in broken and "empty/metrics.jsonl has no complete line" in empty


def test_what_is_named_itself_must_be_readable(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read_sources([folder, folder / "broken"])
    with pytest.raises(DataError, match="and no folder in it has"):
        read_sources([tmp_path])
    deep = tmp_path / "a/b/c/d/e"
    write_run(deep)
    with pytest.raises(DataError, match="and no folder in it has"):
        read_sources([tmp_path])
    assert len(read_sources([tmp_path / "a"])[0]) == 1


def test_a_run_that_is_named_twice_is_there_once(folder: Path) -> None:
    assert len(read_sources([folder / "opd", folder])[0]) == 5


def test_the_table_has_a_row_per_run_and_the_settings_that_differ(folder: Path) -> None:
    runs, _ = read_sources([folder])
    table = run_table(runs)
    assert list(table.headings[:4]) == ["run", "folder", "state", "steps"]
    assert list(table.headings[10:]) == ["seed", "policy.kl_radius"]
    rows = {row[1][0]: [text for text, _ in row] for row in table.rows}
    assert rows["runs/trb-1"] == [
        "trb, seed 1", "runs/trb-1", "finished", "6", "1.0", "61.0", "61.0", "0.0", "3.00", "18", "1", "0.05",
    ]  # fmt: skip
    assert rows["older/wide"][2:4] == ["step 4 of 6", "4"]


def test_of_many_settings_few_are_columns(tmp_path: Path) -> None:
    for place in range(2):
        run = write_run(tmp_path / str(place))
        settings = "".join(f"key{number} = {place + number}\n" for number in range(12))
        (run / "config.toml").write_text(f'name = "r{place}"\nsteps = 6\n{settings}')
    table = run_table(read_sources([tmp_path])[0])
    assert list(table.headings[10:]) == [f"key{number}" for number in range(8)]
    assert table.notes[-1] == "4 further settings differ, from key8 on."


def test_of_many_methods_few_are_drawn_and_all_are_in_the_tables(tmp_path: Path) -> None:
    for number in range(14):
        write_run(tmp_path / "runs" / f"m{number:02}", name=f"m{number:02}", budget=0.01 * number)
    text = write_report([tmp_path / "runs"]).path.read_text()
    assert "those of the first 12 methods; 2 more are in the tables" in text
    figure = text.partition('<section id="curves">')[2].partition('<section id="rollouts">')[0]
    assert "m11" in figure and "m12" not in figure
    assert text.count(">m13<") == 2, "by method and by run"


def test_few_runs_need_no_table_of_their_own(folder: Path, tmp_path: Path) -> None:
    assert (
        'id="table-runs"'
        not in write_report([folder / "opd", folder / "trb-0"], tmp_path / "two.html").path.read_text()
    )


def test_a_run_without_numbers_has_dashes(tmp_path: Path) -> None:
    for name in "abc":
        run = tmp_path / name
        run.mkdir()
        write_lines(run / "metrics.jsonl", [{"step": 0, "loss": 1.0}])
    assert [text for text, _ in run_table(read_sources([tmp_path])[0]).rows[0]][4:] == ["–"] * 6


# --- in a real browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if MISSING:
        pytest.skip(MISSING)
    with browser(tmp_path_factory.mktemp("browser")) as window:
        yield window


@pytest.fixture
def opened(window: Browser, page: Path) -> Iterator[Browser]:
    window.dress(width=1280, height=900)
    window.allow_scripts(is_allowed=True)
    window.open(page)
    window.run("try { sessionStorage.clear() } catch {}")
    window.complaints(), window.requests()
    window.open(page)
    yield window
    assert window.complaints() == []


FILTER = ".filter input"


def shown(window: Browser) -> list[str]:
    return window.texts("#table-runs tbody tr:not([hidden]) td:nth-child(2)")


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        ("trb", {"runs/trb-0", "runs/trb-1"}),
        ("TRB seed=1", {"runs/trb-1"}),
        ("-trb finished", {"runs/opd", "skd/seed-0"}),
        ("last>=61", {"runs/trb-1"}),
        ("kl_radius>0.1", {"older/wide"}),
        ("steps<6", {"older/wide"}),
        ("pass@1%first=0 -opd -older", {"runs/trb-0", "skd/seed-0"}),
        ("nothing>3", set()),
        ("nowhere", set()),
        ("-", {"runs/opd", "runs/trb-0", "runs/trb-1", "older/wide", "skd/seed-0"}),
    ],
)
def test_the_filter_shows_the_rows_that_have_what_is_asked(opened: Browser, words: str, folders: set[str]) -> None:
    assert opened.texts(".filter output") == ["5 of 5 runs"]
    opened.type(FILTER, words)
    assert set(shown(opened)) == folders and opened.texts(".filter output") == [f"{len(folders)} of 5 runs"]


def test_sorting_and_filtering_go_together_and_outlast_a_reload(opened: Browser, page: Path) -> None:
    opened.click("#table-runs th:nth-child(12) button")
    opened.click("#table-runs th:nth-child(12) button")
    opened.type(FILTER, "finished")
    expected = ["runs/trb-0", "runs/trb-1", "runs/opd", "skd/seed-0"]
    assert [set(shown(opened)[:2]), set(shown(opened)[2:])] == [set(expected[:2]), set(expected[2:])]
    before = shown(opened)
    opened.open(page)
    assert shown(opened) == before, "a page that loads itself anew keeps what was chosen"
    assert (
        opened.run("return document.querySelector('#table-runs [aria-sort]').textContent.trim()") == "policy.kl_radius"
    )
    assert opened.run(f"return document.querySelector({FILTER!r}).value") == "finished"


def test_without_a_script_it_is_a_plain_table(opened: Browser, page: Path) -> None:
    opened.allow_scripts(is_allowed=False)
    opened.open(page)
    assert len(shown(opened)) == 5 and opened.texts(FILTER) == [] and opened.texts(".filter") == []
    assert opened.run("return getComputedStyle(document.querySelector('th button'), '::after').content") == "none"
    assert len(opened.texts("figure svg")) == 8


# --- keyboard, phone, light and dark ---------------------------------------------------------------------------------

# Every element of its own text whose contrast with what is behind it is below WCAG's 4.5 : 1 (3 : 1 for large text).
TOO_FAINT = """
const parsed = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const behind = (element) => {
  const layers = [];
  for (let each = element; each; each = each.parentElement) layers.push(parsed(getComputedStyle(each).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const light = (colour) => {
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
for (const element of document.body.querySelectorAll("*:not(script):not(style):not(svg *)")) {
  const style = getComputedStyle(element);
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility()) continue;
  const ground = behind(element);
  const [a, b] = [light(over(parsed(style.color), ground)), light(ground)].sort((x, y) => y - x);
  const size = parseFloat(style.fontSize);
  const needed = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < needed) found.push(`${element.outerHTML.slice(0, 60)}: ${contrast.toFixed(2)}`);
}
return found;
"""
# What can be reached by Tab, in the order of the page.
FOCUSABLE = """
return [...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")]
  .filter((each) => each.checkVisibility()).length;
"""
FOCUSED = """
const style = getComputedStyle(document.activeElement);
const name = document.activeElement;
window.seen = window.seen || new Map();
if (!window.seen.has(name)) window.seen.set(name, window.seen.size);
return [window.seen.get(name), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2, name.tagName];
"""


def test_the_look_at_contrasts_sees_a_faint_text(opened: Browser) -> None:
    opened.run(
        "document.querySelector('h1').style.color = '#999'; document.querySelector('footer p').style.color = '#888'"
    )
    faint = opened.run(TOO_FAINT)
    assert [line[:3] for line in faint] == ["<h1", "<p "] and faint[0].endswith(": 2.85")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("colour", ["fate", "teacher", "kl", "gap"])
def test_every_text_stands_out_from_what_is_behind_it(opened: Browser, dark: bool, colour: str) -> None:
    opened.dress(width=1280, height=900, dark=dark)
    opened.click(f"[data-choice='colour:{colour}']")
    opened.run("for (const each of document.querySelectorAll('details')) each.open = true")
    assert opened.run(TOO_FAINT) == []


def test_tab_reaches_everything_once_and_shows_where_it_is(opened: Browser) -> None:
    number = opened.run(FOCUSABLE)
    places = []
    for _ in range(number):
        opened.press(TAB)
        place, is_marked, name = opened.run(FOCUSED)
        assert is_marked, f"no one sees that {name} has the focus"
        places.append(place)
    assert places == list(range(number)) and number > 40


def test_a_row_is_found_with_the_keyboard_alone(opened: Browser) -> None:
    opened.run(f"document.querySelector({FILTER!r}).focus()")
    for key in "seed=1":
        opened.press(key)
    assert shown(opened) == ["runs/trb-1"]
    opened.press(TAB)  # the table, which scrolls
    opened.press(TAB)
    opened.press(ENTER)
    assert opened.run("return document.querySelector('#table-runs [aria-sort]').cellIndex") == 0


@pytest.mark.parametrize("width", [320, 360, 768])
def test_it_fits_a_phone_and_a_finger(opened: Browser, width: int) -> None:
    opened.dress(width=width, height=740)
    opened.type(FILTER, "trb")
    assert opened.run("return document.documentElement.scrollWidth") <= width, "tables scroll by themselves"
    touched = "[...document.querySelectorAll('.choices button, .filter input')]"
    assert opened.run(f"return Math.min(...{touched}.map((x) => x.getBoundingClientRect().height))") >= 24, "WCAG 2.5.8"
    opened.run("document.querySelector('#table-runs').parentElement.scrollLeft = 300")
    left = "return document.querySelector('#table-runs tbody tr:not([hidden]) td').getBoundingClientRect().left"
    assert opened.run(left) >= 0, "the name of the run stays in sight"
