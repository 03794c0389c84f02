"""Is a CPU slower than it was at another commit?  Rollouts and training steps of both, in turns.

    python benchmarks/since.py COMMIT [--launches 5] [--only rollout|step] [--json FILE]

The packaged pair (335 tokens of vocabulary), one thread. The other commit is checked out beside this one and takes part
twice, so the table also says what a difference of nothing looks like: `again` is its second copy. Contenders take turns
within a round.

    rollout   64 answers of at most 90 tokens, for each policy that both commits know; by the processor's clock
    step      `tutelage train` with plain OPD and with TRB: the median of a run's own seconds per step, which are on the
              wall, so the machine must be quiet

One process differs from another of the same source by some percent for as long as it lives (where its memory lies), so
everything is launched anew several times. A ratio is now / before, taken within a round, its median over the rounds of
a launch, and of these the median, the lowest and the highest; above 1 = slower now. Tokens of rollouts are compared,
too, and said to be the same or not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from rich.table import Table

from measuring import (
    ROOT,
    Measurement,
    Results,
    Worker,
    checked_out,
    describe,
    machine,
    ratio,
    run_on_threads,
    take_turns,
    wide_console,
    write_json,
)

NUM_ROUNDS, NUM_STEPS = 3, 24
BEFORE, AGAIN, NOW = "before", "again", "now"
POLICIES = {
    "student": ("Student()", 1),
    "TRB, lock-step": ("TrustRegion(kl_radius=0.01)", 1),
    "TRB, drafts of 4": ("TrustRegion(kl_radius=0.01)", 4),
    "TRB, estimated drafts": ("TrustRegion(kl_radius=0.01)", "estimated"),
    "mixture, drafts of 4": ("Mixture(0.3)", 4),
    "SKD, drafts of 4": ("Interleaved(25, 0.2)", 4),
    "fixed blend, lock-step": ("FixedBlend(0.3)", 1),
}
# Run with the source of either commit, so it uses nothing but what both have.
WORKER = """
import hashlib, json, sys, time
sys.path.insert(0, json.loads(sys.stdin.readline())["source"])
import torch
torch.set_num_threads(1)
from tutelage.demo import make_problems, student_path, teacher_path
from tutelage.models import load_language_model, load_tokenizer
from tutelage.policies import *
from tutelage.rollout import PairedEngine
from tutelage.types import Prompt
tokenizer = load_tokenizer(str(student_path()))
student, teacher = (load_language_model(str(path), tokenizer) for path in (student_path(), teacher_path()))
for model in (student, teacher):
    model.module.requires_grad_(False)
texts = [[{"role": "user", "content": each.problem}] for each in make_problems(64, 81000)]
prompts = [Prompt(tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=False)) for text in texts]
print(json.dumps({}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    engine = PairedEngine(student, teacher, draft_length=asked["draft"])
    policy = eval(asked["policy"])
    since = time.process_time()
    made = engine.generate(policy, prompts, max_new_tokens=90, seed=asked["seed"])
    seconds, tokens = time.process_time() - since, [list(each.response_tokens) for each in made]
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    print(json.dumps({"seconds": seconds, "tokens": sum(map(len, tokens)), "digest": digest}), flush=True)
"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--launches", type=int, default=5)
    parser.add_argument("--only", choices=("rollout", "step"), help="without it both")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args()
    run_on_threads(1)
    table = Table("", "tokens or steps", "now / before", "from, to", "again / before", "from, to", "answers")
    table.title = f"seconds, against {options.commit}"
    found: dict[str, list[Results]] = {}
    with checked_out(options.commit) as base, tempfile.TemporaryDirectory() as folder:
        sources = {BEFORE: base, AGAIN: base, NOW: ROOT}
        for launch in range(options.launches):
            made = rollouts(sources) if options.only != "step" else {}
            made |= steps(sources, Path(folder) / str(launch)) if options.only != "rollout" else {}
            for title, results in made.items():
                found.setdefault(title, []).append(results)
    for title, launches in found.items():
        rows = [row for results in launches for own in results.values() for row in own if row["seed"] == 0]
        digests = {row["digest"] for row in rows if "digest" in row}
        answers = "" if not digests else "the same" if len(digests) == 1 else "others"
        table.add_row(
            title,
            f"{rows[0]['tokens']:,}",
            *ratios(launches, NOW),
            *ratios(launches, AGAIN),
            answers,
        )
    console = wide_console()
    console.print(table)
    console.print(describe(machine()))
    write_json(options.json, {"machine": machine(), "commit": options.commit, "results": found})


def rollouts(sources: Mapping[str, Path]) -> dict[str, Results]:
    """Title -> what each contender, launched anew, took for it."""
    workers = {
        name: Worker([sys.executable, "-c", WORKER], {"source": str(path / "src")}) for name, path in sources.items()
    }
    found = {}
    for title, (policy, draft) in POLICIES.items():
        asked: dict[str, Callable[[int], Measurement]] = {
            name: partial(answers_of, worker, policy, draft) for name, worker in workers.items()
        }
        found[title] = take_turns(asked, NUM_ROUNDS, title=title, clock="cpu")
    for worker in workers.values():
        worker.close()
    return found


def answers_of(worker: Worker, policy: str, draft: int | str, seed: int) -> Measurement:
    """What a worker took."""
    return worker.ask({"policy": policy, "draft": draft, "seed": seed}) | {"seed": seed}


def steps(sources: Mapping[str, Path], folder: Path) -> dict[str, Results]:
    """The same for steps of training, once."""
    folder.mkdir()
    demo = ROOT / "src" / "tutelage" / "demo" / "assets"
    rows = [
        {"problem": f"Tom has {n} eggs and sells {n // 3}. How many are left?", "answer": str(n - n // 3)}
        for n in range(20, 84)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    policies = {"student": 'name = "student"', "TRB": 'name = "trust_region"\nkl_radius = 0.01'}
    for title, policy in policies.items():
        run_file = folder / f"{title}.toml"
        run_file.write_text(
            f'student = "{demo / "student"}"\nteacher = "{demo / "teacher"}"\ndata = "{folder / "prompts.jsonl"}"\n'
            f"[policy]\n{policy}\n[rollout]\nprompts_per_step = 16\nsamples_per_prompt = 2\nmax_new_tokens = 60\n"
            '[runtime]\ndevice = "cpu"\nthreads = 1\n'
        )
        contenders: dict[str, Callable[[int], Measurement]] = {
            name: partial(step_of, path, run_file, folder / title / name) for name, path in sources.items()
        }
        found[f"a step, {title}"] = take_turns(contenders, 1, title=title, clock="cpu", warmups=0)
    return found


def step_of(source: Path, run_file: Path, output: Path, seed: int) -> Measurement:
    """The median seconds of a step of a run."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tutelage", "train", str(run_file)]
    for override in (f"output={output}", f"steps={NUM_STEPS}"):
        command += ["--set", override]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"training with {source} failed:\n{ended.stderr}")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {"seconds": median(json.loads(line)["seconds"] for line in lines), "tokens": NUM_STEPS, "seed": seed}


def ratios(launches: Sequence[Results], contender: str) -> tuple[str, str]:
    """A contender's seconds over those before: the median over launches, and the lowest and highest."""
    values = [ratio(results[contender], results[BEFORE], "seconds") for results in launches]
    return f"{median(values):.3f}", f"{min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
