"""How long does the trust-region solve take, and how many passes over the vocabulary does it need?

    python benchmarks/solver.py [--device cuda] [--threads 1] [--quick]

Compares `trust_region_blend` with what the paper describes, a bisection on the blend, at 20 and at 40 halvings, and
with the least that any policy needs: one softmax of the student's and one of the teacher's rows. The bisection is
written for speed rather than for odd rows and small budgets: float32, a fused softmax, no `-inf`; unlike the solve it
takes the whole batch at once. A pass is one evaluation of the KL and its derivative; a batch goes on until its last row
has settled. Prints a table, and one JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tutelage import distributions
from tutelage.distributions import trust_region_blend

VOCABULARIES = (32_000, 152_064)
BATCHES = (1, 64)
RADII = (0.001, 0.01, 0.05)
LIKENESS = 0.7  # correlation of student and teacher logits; KL(q || p) is then some 2 nats
LOGIT_STD = 2.5
REPEATS = 3


def main() -> None:
    """Measure every combination and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="one repeat, and no batch of 64")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    print(
        f"{machine(device)}, torch {torch.__version__}, {torch.get_num_threads()} thread(s); medians in milliseconds\n"
    )
    columns = ("V", "B", "radius", "passes", "solve", "2 softmax", "bisect 20", "bisect 40", "blend error 20 / 40")
    widths = (7, 3, 6, 6, 9, 9, 9, 9, 20)
    print("  ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    results = []
    for vocabulary in VOCABULARIES:
        for batch in BATCHES[:1] if options.quick else BATCHES:
            for radius in RADII:
                result = measure(vocabulary, batch, radius, device, repeats=1 if options.quick else REPEATS)
                results.append(result)
                cells = (vocabulary, batch, radius, result["passes"], *(f"{ms:.2f}" for ms in result["milliseconds"]))
                errors = " / ".join(f"{error:.1e}" for error in result["blend_errors"])
                row = (*cells, errors)
                print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)), flush=True)
    print(json.dumps({"machine": machine(device), "torch": torch.__version__, "results": results}))


def measure(vocabulary: int, batch: int, radius: float, device: torch.device, repeats: int) -> dict[str, Any]:
    """Times of the solve, two softmaxes and two bisections on the same rows, and the blend error of the bisections."""
    generator = torch.Generator().manual_seed(0)
    student, noise = torch.randn(2, batch, vocabulary, generator=generator) * LOGIT_STD
    teacher = (LIKENESS * student + (1 - LIKENESS**2) ** 0.5 * noise).to(device)
    student = student.to(device)

    with counted_passes() as passes:
        blend = trust_region_blend(student, teacher, radius).blend_B
    candidates: list[Callable[[], object]] = [
        lambda: trust_region_blend(student, teacher, radius),
        lambda: (student.log_softmax(-1), teacher.log_softmax(-1)),
        lambda: bisect(student, teacher, radius, halvings=20),
        lambda: bisect(student, teacher, radius, halvings=40),
    ]
    # Side by side: each round runs all four, so that a busy moment of the machine meets them all.
    rounds = [[milliseconds(candidate, device) for candidate in candidates] for _ in range(repeats + 1)][1:]
    return {
        "vocabulary": vocabulary,
        "batch": batch,
        "radius": radius,
        "passes": max(passes),
        "milliseconds": [statistics.median(times) for times in zip(*rounds, strict=True)],
        "blend_errors": [
            ((bisect(student, teacher, radius, halvings)[1] - blend).abs() / blend).max().item()
            for halvings in (20, 40)
        ],
    }


def bisect(student_logits: Tensor, teacher_logits: Tensor, radius: float, halvings: int) -> tuple[Tensor, Tensor]:
    """The plain way: halve [0, 1] and keep the feasible half."""
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    low = torch.zeros(len(student), device=student.device)
    high = torch.ones_like(low)
    for _ in range(halvings):
        middle = (low + high) / 2
        blend = torch.lerp(student, teacher, middle[:, None]).log_softmax(-1)
        fits = (blend.exp() * (blend - student)).sum(-1) <= radius
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    reaches_teacher = (teacher.exp() * (teacher - student)).sum(-1) <= radius
    low = torch.where(reaches_teacher, 1.0, low)
    return torch.lerp(student, teacher, low[:, None]).log_softmax(-1), low


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call, with the device's work done at both ends."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return (time.perf_counter() - start) * 1e3


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def counted_passes() -> Iterator[list[int]]:
    """Passes over each piece of the batch, filled while the block runs."""
    passes: list[int] = []
    solve, evaluate = distributions._last_feasible_point, distributions._cumulants

    def counting_solve(*arguments: Any) -> Any:
        passes.append(0)
        return solve(*arguments)

    def counting_evaluate(*arguments: Any) -> Any:
        passes[-1] += 1
        return evaluate(*arguments)

    with (
        patch.object(distributions, "_last_feasible_point", counting_solve),
        patch.object(distributions, "_cumulants", counting_evaluate),
    ):
        yield passes


def machine(device: torch.device) -> str:
    """What this ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} ({platform.system()} {platform.release()})"


if __name__ == "__main__":
    main()
