"""What does the loss cost from hidden states and heads: peak memory and time, form by form?

    python benchmarks/loss.py [--device cuda] [--dtype bfloat16] [--trl-python PATH] [--json FILE] [--quick]

151,936 words, as Qwen3 has; gradients of hidden states and of the head. Each form runs in a process of its own: the
peak is that of its first call, beyond the inputs (resident memory on a CPU, torch's own count on CUDA), and the time is
the median of the calls after it. The yardstick of time, taken in turns within the same process, is the bare projection
work: both heads and the two products of the gradient, which no form over the whole vocabulary can do without. A naive
form that would not fit is not run, and its memory is scaled from the most tokens at which it was.

- naive: whole logits in autograd. exact, in half precision only: the same with products in float32.
- chunked: ours in chunks of tokens, each computed again in backward.
- tiled, recomputed: ours in tiles (docs/design/speed.md). "top 16": on a recorded support and its rest; that takes
  three of the four multiplications, since the teacher has spoken before.
- TRL: its chunked divergence, from `--trl-python` (benchmarks/README.md) or where it is installed.
- Liger: its fused linear JSD, where `liger-kernel` is installed and the device is CUDA.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table

from measuring import CLOCKS, Measurement, describe, machine, run_on_threads, wide_console, write_json

VOCABULARY = 151_936
OURS = ("exact", "naive", "chunked", "tiled", "recomputed", "chunked, top 16", "tiled, top 16")
WITH_RECORD = ("chunked, top 16", "tiled, top 16")
# Tensors [T, V] in float32 that the naive form holds at its peak, generously; what is refused is not worth trying.
NAIVE_TENSORS = 8
SHARE_OF_MEMORY = 0.8


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192, 32_768])
    parser.add_argument(
        "--width", type=int, nargs="+", default=[1024, 2048, 4096], help="of hidden states, both models"
    )
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument(
        "--jsd-share", type=float, default=1.0, help="1: reverse KL, 0: forward KL, else generalised JSD"
    )
    parser.add_argument("--only", nargs="+", help="some of the forms")
    parser.add_argument("--trl-python", type=Path, help="interpreter of an environment with TRL")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for a busy machine, one thread")
    parser.add_argument("--quick", action="store_true", help="256 tokens of width 512, 32,000 words, one repeat")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    run_on_threads(options.threads)
    if options.quick:
        options.tokens, options.width, options.vocabulary, options.repeats = [256], [512], 32_000, 1

    console, facts = wide_console(), machine(options.device)
    console.print(describe(facts))
    interpreters = {name: Path(sys.executable) for name in OURS} | others(options, console)
    names = [name for name in interpreters if options.only is None or name in options.only]
    if options.dtype == "float32":  # the naive form is exact
        names = [name for name in names if name != "exact"]
    results: list[Measurement] = []
    for width in options.width:
        for tokens in sorted(options.tokens):
            found = {}
            with TemporaryDirectory() as folder:
                for name in names:
                    needed = NAIVE_TENSORS * 4 * tokens * options.vocabulary
                    there = memory(options.device)
                    if name in ("exact", "naive") and needed > SHARE_OF_MEMORY * there:
                        console.print(
                            f"{name} at {tokens} tokens needs some {gib(needed)} GiB of {gib(there)}: not measured"
                        )
                        continue
                    measured = measure(name, interpreters[name], options, tokens, width, Path(folder))
                    if "error" in measured:
                        console.print(f"{name} at {tokens} tokens, width {width}: {measured['error']}")
                    else:
                        found[name] = measured
                compare_gradients(found)
            results.extend({"tokens": tokens, "width": width, "form": name, **each} for name, each in found.items())
            scaled = scaled_naive(results, tokens, width)
            console.print(
                table(found, scaled, f"{tokens} tokens, width {width}, {options.vocabulary} words, {options.dtype}")
            )
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("json", "trl_python")}
    write_json(options.json, {"machine": facts, "settings": settings, "results": results})


def others(options: argparse.Namespace, console: Any) -> dict[str, Path]:
    """Interpreters of the forms that are not ours, with a plain line for each that cannot run."""
    found = {}
    if options.trl_python is not None:
        found["TRL"] = options.trl_python
    elif importlib.util.find_spec("trl") is not None:
        found["TRL"] = Path(sys.executable)
    else:
        console.print("TRL: not installed here, and --trl-python names no interpreter that has it")
    if importlib.util.find_spec("liger_kernel") is None:
        console.print("Liger: not installed (`pip install liger-kernel`)")
    elif not options.device.startswith("cuda"):
        console.print("Liger: needs CUDA")
    else:
        found["Liger"] = Path(sys.executable)
    return found


def measure(
    name: str, interpreter: Path, options: argparse.Namespace, tokens: int, width: int, folder: Path
) -> Measurement:
    """Run one form in its process."""
    gradients = folder / f"{name.replace(', ', '-').replace(' ', '-')}.pt"
    job = {
        "form": name,
        "tokens": tokens,
        "width": width,
        "gradients": str(gradients),
        **{
            key: getattr(options, key)
            for key in ("device", "dtype", "vocabulary", "jsd_share", "repeats", "threads", "clock")
        },
    }
    command = [str(interpreter), str(Path(__file__).with_name("loss_forms.py")), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was ended, perhaps for its memory"])[-1]
        return {"error": last}
    answer: Measurement = json.loads(done.stdout.strip().splitlines()[-1])
    return {**answer, "gradients": torch.load(gradients)}


def compare_gradients(found: dict[str, Measurement]) -> None:
    """Largest relative distance of the gradients from those of the most exact form that was measured."""
    gradients = {name: each.pop("gradients") for name, each in found.items()}
    full = [name for name in ("exact", "naive", "chunked") if name in found]
    for name, each in found.items():
        base = "chunked, top 16" if name in WITH_RECORD else next(iter(full), name)
        if base not in gradients:
            continue
        pairs = zip(gradients[name], gradients[base], strict=True)
        each["gradient_error"] = max(float((mine - other).norm() / other.norm()) for mine, other in pairs)
        each["compared_with"] = base


def scaled_naive(results: list[Measurement], tokens: int, width: int) -> float | None:
    """Extra memory of the naive form at so many tokens: measured, or scaled from fewer of the same width."""
    known = [each for each in results if each["form"] == "naive" and each["width"] == width]
    largest = max(known, key=lambda each: each["tokens"], default=None)
    return None if largest is None else largest["extra_bytes"] * tokens / largest["tokens"]


def memory(device: str) -> int:
    """Bytes that are free."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def gib(number: float) -> str:
    """GiB, two digits."""
    return f"{number / 2**30:.2f}"


def table(found: dict[str, Measurement], naive_bytes: float | None, title: str) -> Table:
    """One row per form."""
    shown = Table(title=title, title_justify="left")
    is_scaled = "naive" not in found
    over = "/ naive, scaled" if is_scaled else "/ naive"
    for heading in ("", "extra GiB", over, "seconds", "/ projections", "gradient error", "from"):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    for name, each in found.items():
        ratios = [mine / bare for mine, bare in zip(each["seconds"], each["projections"], strict=True)]
        shown.add_row(
            name,
            gib(each["extra_bytes"]),
            "" if naive_bytes is None else f"{each['extra_bytes'] / naive_bytes:.3f}",
            f"{statistics.median(each['seconds']):.3f}",
            f"{statistics.median(ratios):.2f}",
            f"{each.get('gradient_error', float('nan')):.1e}",
            each.get("compared_with", ""),
        )
    return shown


if __name__ == "__main__":
    main()
