"""The pages of the Python reference: one for each module or package that others import from, from its docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from website.repository import SOURCE

# What a person at a terminal sees; nobody imports it.
INTERNAL = {"cli", "display"}


def api_pages() -> list[tuple[str, str, str]]:
    """(name, path, text) of every page."""
    return [(name, f"reference/{name}.md", _page(name, tree)) for name, tree in _modules()]


def _modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module below `tutelage` that says what it exports: packages, and the files beside them."""
    for path in sorted([*SOURCE.glob("*.py"), *SOURCE.glob("*/__init__.py"), *SOURCE.glob("*/*/__init__.py")]):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text())
        if not set(parts) & INTERNAL and any(_is_export(node) for node in tree.body):
            yield name, tree


def _is_export(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def _page(name: str, tree: ast.Module) -> str:
    return f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n      heading_level: 2\n"
