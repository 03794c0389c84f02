"""How a panel looks: colours that survive colour blindness and print, a light grid, labels beside the lines they name.

Everything is set on the axes it is given; the global settings of matplotlib are neither read on purpose nor changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tutelage.errors import ConfigurationError
from tutelage.files import written_whole
from tutelage.report.plain import as_label, in_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "SHADE",
    "TEXT_SIZE",
    "Stroke",
    "check_figure_format",
    "dress",
    "label_right",
    "legend_columns",
    "name_strokes",
    "saved",
    "silent_about_glyphs",
    "stroke",
    "texts_as_text",
]

INK = "#222222"
MUTED = "#6e6e6e"
GRID = "#e8e8e8"
SHADE = "#f3efe3"

# Okabe and Ito (2008) without yellow, which is too faint for a line on white
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v")

TITLE_SIZE = 11
TEXT_SIZE = 9
DOTS_PER_INCH = 130
MAX_TEXT = 120  # letters of one text in a figure
FIGURE_FORMATS = (".png", ".pdf", ".svg")
LEGEND_LETTERS_PER_INCH = 12.5
STROKE_LETTERS = 10  # a stroke takes as much room as so many
MAX_LEGEND_COLUMNS = 6
LABEL_GAP = 0.075  # least distance between two labels, as a share of the height of a full panel


class Stroke(NamedTuple):
    """How one line is drawn, told apart by more than its colour."""

    color: str
    linestyle: Any
    marker: str


def stroke(index: int) -> Stroke:
    """The stroke of the n-th line; the first 35 all differ."""
    style = index % len(LINE_STYLES)
    return Stroke(PALETTE[index % len(PALETTE)], LINE_STYLES[style], MARKERS[style])


def dress(axes: Axes, title: str, subtitle: str = "") -> None:
    """Give a panel its title, a grey line on what is drawn, and a frame and grid that stay in the background."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01, y=0.08)
    axes.tick_params(colors=MUTED, labelsize=TEXT_SIZE, length=0)
    if title:
        axes.set_title(title, loc="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK, pad=20 if subtitle else 6)
    if subtitle:
        axes.annotate(
            subtitle, (0, 1), xytext=(0, 7), xycoords="axes fraction", textcoords="offset points",
            fontsize=TEXT_SIZE, color=MUTED,
        )  # fmt: skip


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]], panel_share: float = 1.0) -> None:
    """Write labels to the right of the axes at the heights of their lines, moved apart where they would overlap.

    Call it last, when the limits of the axes are settled.

    Args:
      labels: (height in data units, text, colour) of each.
      panel_share: height of these axes as a share of a full panel.
    """
    if not labels:
        return
    low, high = axes.get_ylim()
    placed = sorted(((height - low) / (high - low), text, color) for height, text, color in labels)
    heights = [height for height, _, _ in placed]
    gap = LABEL_GAP / panel_share
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for index in reversed(range(len(heights) - 1)):
        heights[index] = min(heights[index], heights[index + 1] - gap)
    for height, (_, text, color) in zip(heights, placed, strict=True):
        axes.annotate(
            as_label(text), (1, height), xytext=(4, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=TEXT_SIZE, color=color, annotation_clip=False,
        )  # fmt: skip


def legend_columns(width_inches: float, names: Collection[str]) -> int:
    """How many names fit side by side above a figure."""
    letters = STROKE_LETTERS + max(len(as_label(name)) for name in names)
    return max(1, min(len(names), MAX_LEGEND_COLUMNS, int(width_inches * LEGEND_LETTERS_PER_INCH // letters)))


def name_strokes(figure: Figure, strokes: Mapping[str, Stroke], title: str = "") -> None:
    """The names of the strokes above the panels, under a grey line of text if there is one."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=how.color, linestyle=how.linestyle, marker=how.marker, linewidth=2, markersize=5)
        for how in strokes.values()
    ]
    placeholders = [str(index) for index in range(len(handles))]
    columns = legend_columns(figure.get_figwidth(), strokes)
    legend = figure.legend(
        handles, placeholders, loc="outside upper left", ncols=columns, frameon=False, handlelength=3.2,
        fontsize=TEXT_SIZE + 1, title=title or None, title_fontsize=TEXT_SIZE, alignment="left",
    )  # fmt: skip
    for text, label in zip(legend.get_texts(), strokes, strict=True):
        text.set_text(as_label(label))  # a folder's name may begin with _, which a legend would take as a command
        text.set_color(INK)


def check_figure_format(path: Path) -> None:
    """Refuse a file whose ending is no format of a figure."""
    if path.suffix.lower() not in FIGURE_FORMATS:
        raise ConfigurationError(
            f"The figure is to be written to {path}; its name must end in {' or '.join(FIGURE_FORMATS)}. Rename it."
        )


def texts_as_text(figure: Figure) -> None:
    """Names in a figure are text: $ begins no formula, a control character is shown, a long one is cut."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(in_line(shortened(text.get_text(), MAX_TEXT)))


@contextmanager
def silent_about_glyphs() -> Iterator[None]:
    """No warning of a letter that the font lacks: it is a box in a PNG, and itself in an SVG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def saved(figure: Figure, path: Path) -> Path:
    """Write a figure whole or not at all, in the format that the path's ending names; returns the path."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    texts_as_text(figure)
    # Labels of ticks are made only while the figure is drawn, so the setting has to hold then.
    with rc_context({"text.parse_math": False}), silent_about_glyphs(), written_whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH)
    return path
