"""The Triton kernels, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; `make test-triton` runs this in an environment of its own",
)
@pytest.mark.parametrize(
    "program",
    [
        "kernel_agreement trust_regions",
        "kernel_agreement rows",
        "kernel_agreement compositions",
        "kernel_agreement laws",
        "loss_agreement",
        "layer_agreement",
    ],
)
def test_kernels_agree_with_the_reference_in_the_interpreter(program: str) -> None:
    """In a process of its own: the interpreter has to be chosen before Triton is imported."""
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src"), *sys.path])
    finished = subprocess.run(
        [sys.executable, "-m", *f"tests.support.{program}".split()],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "agreed" in finished.stderr
