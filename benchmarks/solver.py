"""How long does the trust-region solve take, and how often does it read the rows of logits?

    python benchmarks/solver.py [--device cuda] [--threads 1] [--quick]

Compares `trust_region_blend`, which returns the whole blend, and `kernels.blend_point`, which returns what it takes to
evaluate it anywhere, with what the paper describes, a bisection on the blend, at 20 and at 40 halvings. The yardsticks
are two plain reads of the rows (a maximum of each), and one softmax of each, the least that any policy needs. `draw` is
`kernels.draw_blend`, one token per row. The bisection is written for speed rather than for odd rows and small budgets:
float32, a fused softmax, no `-inf`; unlike `trust_region_blend` it takes the whole batch at once. A pass is one
evaluation of the KL and its derivative by `trust_region_blend`, a read one by `blend_point`; a batch goes on until its
last row has settled. Prints a table, and one JSON line at the end.
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

from tutelage import distributions, kernels
from tutelage.distributions import trust_region_blend
from tutelage.kernels import reference, sampler

VOCABULARIES = (32_000, 152_064)
BATCHES = (1, 64)
RADII = (0.001, 0.01, 0.05)
LIKENESS = 0.7  # correlation of student and teacher logits; KL(q || p) is then some 2 nats
LOGIT_STD = 2.5
REPEATS = 5
CANDIDATES = ("solve", "point", "draw", "2 reads", "2 softmax", "bisect 20", "bisect 40")


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
    columns = ("V", "B", "radius", "passes", "reads", *CANDIDATES, "point / 2 reads", "blend error 20 / 40 / point")
    widths = (7, 3, 6, 6, 5, *(9 for _ in CANDIDATES), 15, 30)
    print("  ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    results = []
    for vocabulary in VOCABULARIES:
        for batch in BATCHES[:1] if options.quick else BATCHES:
            for radius in RADII:
                result = measure(vocabulary, batch, radius, device, repeats=1 if options.quick else REPEATS)
                results.append(result)
                times = result["milliseconds"]
                row = (
                    *(result[name] for name in ("vocabulary", "batch", "radius", "passes", "reads")),
                    *(f"{times[name]:.2f}" for name in CANDIDATES),
                    f"{times['point'] / times['2 reads']:.1f}",
                    " / ".join(f"{error:.1e}" for error in result["blend_errors"]),
                )
                print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)), flush=True)
    print(json.dumps({"machine": machine(device), "torch": torch.__version__, "results": results}))


def measure(vocabulary: int, batch: int, radius: float, device: torch.device, repeats: int) -> dict[str, Any]:
    """Times of every candidate on the same rows, and the blend error of the bisections and of `blend_point`."""
    generator = torch.Generator().manual_seed(0)
    student, noise = torch.randn(2, batch, vocabulary, generator=generator) * LOGIT_STD
    teacher = (LIKENESS * student + (1 - LIKENESS**2) ** 0.5 * noise).to(device)
    student = student.to(device)
    uniforms = torch.rand(batch, generator=generator, dtype=torch.float64).to(device)

    with counted_passes() as passes:
        blend = trust_region_blend(student, teacher, radius).blend_B
    with counted_reads(student) as reads:
        point = kernels.blend_point(student, teacher, radius)
    candidates: dict[str, Callable[[], object]] = {
        "solve": lambda: trust_region_blend(student, teacher, radius),
        "point": lambda: kernels.blend_point(student, teacher, radius),
        "draw": lambda: kernels.draw_blend(student, teacher, point, uniforms),
        "2 reads": lambda: (student.amax(-1), teacher.amax(-1)),
        "2 softmax": lambda: (student.log_softmax(-1), teacher.log_softmax(-1)),
        "bisect 20": lambda: bisect(student, teacher, radius, halvings=20),
        "bisect 40": lambda: bisect(student, teacher, radius, halvings=40),
    }
    # Side by side: each round runs all of them, so that a busy moment of the machine meets them all.
    rounds = [[milliseconds(candidates[name], device) for name in CANDIDATES] for _ in range(repeats + 1)][1:]
    found = [*(bisect(student, teacher, radius, halvings)[1] for halvings in (20, 40)), point.blend_B]
    return {
        "vocabulary": vocabulary,
        "batch": batch,
        "radius": radius,
        "passes": max(passes),
        "reads": sum(reads),
        "milliseconds": {
            name: statistics.median(times) for name, times in zip(CANDIDATES, zip(*rounds, strict=True), strict=True)
        },
        "blend_errors": [((other - blend).abs() / blend).max().item() for other in found],
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


@contextmanager
def counted_reads(logits: Tensor) -> Iterator[list[bool]]:
    """One entry per read of `blend_point`, filled while the block runs; a read of settled rows is not one.

    A kernel keeps its reads to itself: there it stays empty.
    """
    reads: list[bool] = []
    backend = sampler._backend(logits)
    if backend is not reference:
        yield reads
        return
    solve = backend.solve

    def counting_solve(rows: Any, *arguments: Any) -> Any:
        ends, tilts = rows.ends, rows.tilts
        rows.ends = lambda: (reads.append(True), ends())[1]
        rows.tilts = lambda *known: (reads.append(bool(known[-1].any())), tilts(*known))[1]
        return solve(rows, *arguments)

    with patch.object(backend, "solve", counting_solve):
        yield reads


def machine(device: torch.device) -> str:
    """What this ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} ({platform.system()} {platform.release()})"


if __name__ == "__main__":
    main()
