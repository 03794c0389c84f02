"""Plain OPD against TRB on the embedded pair over several seeds: is any difference larger than the spread?

    python benchmarks/demo_seeds.py --seeds 5 --output demo-seeds

A seed changes the prompts, the evaluation problems and every random draw; both methods of a seed share all three. It
prints mean and standard deviation over seeds, and the paired difference TRB - OPD with a 95% Student-t interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tutelage.evaluation import t_interval

METHODS = ("opd", "trb")
EARLY_STEPS = 10


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(run: Path) -> dict[str, float]:
    metrics, evaluations = lines(run / "metrics.jsonl"), lines(run / "evaluations.jsonl")
    early = metrics[:EARLY_STEPS]
    last = metrics[-EARLY_STEPS:]
    return {
        "pass@1 before, %": 100 * evaluations[0]["pass_at_1"],
        "pass@1 after, %": 100 * evaluations[-1]["pass_at_1"],
        f"first {EARLY_STEPS} steps: correct rollouts, %": 100 * statistics.mean(r["reward"] for r in early),
        f"first {EARLY_STEPS} steps: teacher log-prob / token": statistics.mean(r["teacher_logprob"] for r in early),
        f"first {EARLY_STEPS} steps: teacher entropy": statistics.mean(r["teacher_entropy"] for r in early),
        f"last {EARLY_STEPS} steps: correct rollouts, %": 100 * statistics.mean(r["reward"] for r in last),
        "seconds / step": statistics.mean(r["seconds"] for r in metrics),
    }


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):8.2f} ± {statistics.stdev(values):.2f}"


def paired(first: list[float], second: list[float]) -> str:
    differences = [b - a for a, b in zip(first, second, strict=True)]
    low, high = t_interval(differences) or (float("nan"), float("nan"))
    return f"{statistics.mean(differences):+8.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, default=Path("demo-seeds"))
    arguments = parser.parse_args()

    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for seed in range(arguments.seeds):
        folder = arguments.output / f"seed-{seed}"
        if not (folder / "curves.png").exists():  # drawn when both runs of a seed are done
            command = [sys.executable, "-m", "tutelage", "demo", "--output", folder, "--seed", seed, "--steps"]
            subprocess.run([str(word) for word in [*command, arguments.steps]], check=True, stdout=subprocess.DEVNULL)
        for method in METHODS:
            found[method].append(measure(folder / method))
        print(f"seed {seed} done", flush=True)

    print(f"\n{arguments.seeds} seeds, {arguments.steps} steps; {platform.machine()}, {platform.processor() or 'CPU'}")
    print(f"{'':44}{'OPD':>18}{'TRB':>18}{'TRB - OPD, 95%':>28}")
    for name in found["opd"][0]:
        opd, trb = ([result[name] for result in found[method]] for method in METHODS)
        print(f"{name:44}{spread(opd):>18}{spread(trb):>18}{paired(opd, trb):>28}")


if __name__ == "__main__":
    main()
