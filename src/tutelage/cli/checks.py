"""What several commands do with their arguments before anything is computed."""

from __future__ import annotations

from pathlib import Path

from tutelage.errors import OutputExistsError

__all__ = ["check_output_file", "set_threads"]


def check_output_file(output: Path) -> None:
    """Refuse a file that exists already, or that could not be written."""
    from tutelage.config import check_writable

    if output.exists():
        raise OutputExistsError(f"{output} already exists; nothing is overwritten. Choose another file.")
    check_writable(output)


def set_threads(threads: int | None) -> None:
    """PyTorch's threads; None leaves them as they are."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
