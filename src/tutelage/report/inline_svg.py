"""A figure as a part of a page: colours that follow its theme, ids that no other figure has."""

from __future__ import annotations

import re

from tutelage.report.figures import ReportFigure
from tutelage.report.style import GRID, INK, MUTED, SHADE

__all__ = ["for_page", "page_colors"]

# Colours that follow the page from light to dark; the other lines are readable on both.
PAGE_COLORS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SHADE: "var(--shade)",
    "#0072B2": "var(--blue)",
}


def for_page(figure: ReportFigure) -> str:
    """The SVG as an element of a page: colours that follow the theme, ids that no other figure has, no metadata."""
    text = figure.svg[figure.svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{figure.name}-\1"', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{figure.name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return page_colors(text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


def page_colors(svg: str) -> str:
    """Ink, grid and paper as custom properties of the page."""
    for color, variable in PAGE_COLORS.items():
        svg = svg.replace(color.lower(), variable)
    return re.sub(r"fill: #ffffff\b", "fill: none", svg).replace("#000000", "var(--ink)")
