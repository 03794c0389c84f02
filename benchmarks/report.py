"""What does a report of a very long run cost?  Seconds and memory of whole processes, now and at another commit.

    python benchmarks/report.py --lines 1000000
    python benchmarks/report.py --lines 20000 --base HEAD~1

The run's folder is made up: its lines have the keys and the length of those that the packaged pair writes, with a
trust region for the first 40% of the steps, expensive diagnostics at every tenth, 4 logged rollouts at every hundredth,
and evaluations of 50 problems, 200 answers each, at up to 1,001 steps. One step has a loss of a thousand, which must be
seen. Measured are `tutelage report` and the drawing of `curves.png` at the end of a run, each in a process of its own;
memory is its maximum resident size as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from measuring import ROOT, checked_out, describe, machine, wide_console, write_json

JOBS = {
    "tutelage report": "from tutelage.cli import main; import sys; sys.argv = ['tutelage', 'report', {run!r}]; main()",
    "curves.png": "from tutelage.report import plot_run; from pathlib import Path; plot_run(Path({run!r}))",
}
BLOCK = 10_000  # metric lines are made once for so many steps, and differ between blocks in their step only
MAX_EVALUATIONS = 1_000
STEPS_PER_LOG = 100
WARM_SHARE = 0.4

EVERY_STEP = (
    "loss grad_norm learning_rate logprob_mismatch weight_mean behaviour_logprob student_logprob teacher_logprob "
    "sampled_reverse_kl student_entropy teacher_entropy entropy_gap support_mass_student support_mass_teacher "
    "support_overlap response_tokens stopped_share truncated_share teacher_support reward teacher_support_auroc "
    "seconds_rollout seconds_score seconds_verify seconds_update seconds response_tokens_total tokens_per_second"
)
WARM = (
    "kl_radius blend_mean blend_share_zero blend_share_one blend_share_inside kl_used kl_used_share sequence_kl "
    "replaced_share acceptance_rate tokens_per_teacher_forward"
)
DETAILS = (
    "reverse_kl_at_0 reverse_kl_at_4 reverse_kl_at_16 reverse_kl_at_64 student_entropy_at_0 student_entropy_at_4 "
    "student_entropy_at_16 student_entropy_at_64 teacher_entropy_at_0 teacher_entropy_at_4 teacher_entropy_at_16 "
    "teacher_entropy_at_64 overlap_advantage overlap_advantage_teacher_weighted overlap_mass_student "
    "overlap_mass_teacher blend_inside_quartile_1 blend_inside_median blend_inside_quartile_3 repeated_4grams "
    "longest_repeat"
)


def write_run(folder: Path, lines: int) -> None:
    """The folder of a finished run of so many steps."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "config.toml").write_text(f'name = "long"\noutput = "{folder}"\nseed = 0\nsteps = {lines}\n')
    dice = np.random.default_rng(0)
    blocks = {is_warm: [_numbers(dice, step, is_warm) for step in range(BLOCK)] for is_warm in (True, False)}
    with (folder / "metrics.jsonl").open("w") as file:
        for start in range(0, lines, BLOCK):
            for step in range(start, min(start + BLOCK, lines)):
                rest = blocks[step < WARM_SHARE * lines][step - start]
                if step == lines // 2:
                    rest = json.dumps(json.loads("{" + rest) | {"loss": 1000.0})[1:]
                file.write(f'{{"step": {step}, {rest}\n')
    with (folder / "samples.jsonl").open("w") as file:
        for step in range(0, lines, STEPS_PER_LOG):
            file.writelines(f"{json.dumps(_rollout(dice, step, number))}\n" for number in range(4))
    with (folder / "evaluations.jsonl").open("w") as file:
        for step in np.unique(np.linspace(0, lines, min(lines, MAX_EVALUATIONS) + 1).astype(int)).tolist():
            right = dice.random(200) < 0.1 + 0.6 * step / lines
            look = {"step": step, "name": "fresh problems", "pass_at_1": right.mean(), "seconds": 15.2}
            file.write(
                json.dumps({**look, "num_problems": 50, "num_samples": 4, "pass_at_1_interval": [0.1, 0.9]}) + "\n"
            )
            answers = [
                {"problem_id": f"world-72000-{place // 4:05d}", "sample_index": place % 4, "correct": bool(is_right),
                 "response": "Ben has 35.\nHe loses 8: 35-8=28\nThe shop is 5 miles away.", "answer": "46",
                 "finished": True, "num_tokens": 40}
                for place, is_right in enumerate(right)
            ]  # fmt: skip
            path = folder / "evaluations" / f"step-{step:06d}-fresh problems.jsonl"
            path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))


def _numbers(dice: np.random.Generator, step: int, is_warm: bool) -> str:
    names = f"{EVERY_STEP} {WARM if is_warm else ''} {DETAILS if step % 10 == 0 else ''}".split()
    return json.dumps(dict(zip(names, dice.random(len(names)).tolist(), strict=True)))[1:]


def _rollout(dice: np.random.Generator, step: int, number: int) -> dict[str, Any]:
    text = "Tom has 25. He finds 15: 25+15=40 He loses 3: 40-3=37 He loses 16: 37-16=21 \\boxed{21}"
    pieces = [text[place : place + 2] for place in range(0, len(text), 2)]
    columns = {
        name: dice.random(len(pieces)).round(3).tolist() for name in ("student_logprob", "teacher_logprob", "kl")
    }
    return {
        "step": step, "prompt_number": number, "sample": 0, "prompt": "Tom has 25 rings. Count the rings of Tom. " * 4,
        "response": text, "answer": "21", "finished": True, "correct": True, "teacher_logprob": -0.1,
        "tokens": {"text": pieces, **columns, "replaced": [0] * len(pieces)},
    }  # fmt: skip


def measured(job: str, run: Path, source: Path) -> dict[str, Any]:
    """Seconds, seconds of the processor and megabytes of one process that does the job with the library at `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", JOBS[job].format(run=str(run))], env=environment, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        failure = said.read().splitlines()[-1] if process.returncode else ""
    unit = 1 if sys.platform == "darwin" else 1024  # the kernel's unit of ru_maxrss
    found = {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss * unit / 1e6}
    page = run.parent / f"{run.name}.report.html"
    if failure:
        return found | {"failure": failure}
    return found | ({"page_megabytes": page.stat().st_size / 1e6} if job == "tutelage report" else {})


def show(results: dict[str, dict[str, Any]], lines: int, size: float, facts: dict[str, Any]) -> None:
    """A row per job and source."""
    table = Table("", "source", "seconds", "of the processor", "MB at most", "page, MB, or how it failed")
    table.title = f"a run of {lines:,} metric lines, {size / 1e6:,.0f} MB"
    for job in JOBS:
        for name, found in results.items():
            page = found[job].get("page_megabytes")
            cells = [f"{found[job][key]:,.0f}" for key in ("seconds", "cpu", "megabytes")]
            table.add_row(job, name, *cells, found[job].get("failure", "" if page is None else f"{page:.1f}"))
    console = wide_console()
    console.print(table)
    console.print(describe(facts))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--base", help="a commit to measure as well; 355fc6c takes a quarter of an hour")
    parser.add_argument("--only-base", action="store_true", help="do not measure the working tree")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "long"
        write_run(run, given.lines)
        results: dict[str, dict[str, Any]] = {}
        if given.base:
            with checked_out(given.base) as base:
                results[given.base] = {job: measured(job, run, base / "src") for job in JOBS}
        if not given.only_base:
            results["working tree"] = {job: measured(job, run, ROOT / "src") for job in JOBS}
        facts = machine()
        show(results, given.lines, (run / "metrics.jsonl").stat().st_size, facts)
    write_json(given.json, {"machine": facts, "lines": given.lines, "results": results})


if __name__ == "__main__":
    main()
