"""The notebooks of docs/, executed: `python -m website.notebooks` writes their outputs into them.

Needs the packages of the extra "notebook". Each runs in an empty folder of its own, so its outputs name no path of this
machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from website.repository import ROOT

__all__ = ["NOTEBOOKS", "executed"]

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
SECONDS_PER_CELL = 600


def executed(path: Path, folder: Path) -> Any:
    """The notebook as it is after all its cells have run in `folder`, in the Python that runs this.

    Raises:
      CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata = {}  # the times of this execution
    return notebook


def main() -> None:
    """Execute every notebook and write it."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)


if __name__ == "__main__":
    main()
