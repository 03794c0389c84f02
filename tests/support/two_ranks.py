"""Processes that go through several small runs together: `python -m tests.support.two_ranks FOLDER PORT PORT PORT`.

Two are started by hand, as on two machines, and two by torchrun on two "nodes" of this machine. All are forks of one
process, because imports take longer than the runs. `tests/e2e/test_processes.py` finds in FOLDER the output of each
process, its exit code, and the problem that ended a run. The process that forked them plays the server of "served": to
load its weights beside another model would not do, because transformers sets what it loads with for a whole process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tests.support.fake_server import student_server
from tutelage.config import build_run, load_config
from tutelage.errors import DataError, TutelageError
from tutelage.models import LanguageModel, ModelSource, load_language_model, load_tokenizer
from tutelage.policies import Policy
from tutelage.rollout import Engine, Request, Scorer
from tutelage.runtime import Processes, heartbeat, joined
from tutelage.training import Observer, Run, train
from tutelage.types import Rollout

RUNS: dict[str, list[str]] = {
    "ddp": ["steps=5"],
    "fsdp2": ["steps=5", "runtime.strategy=fsdp2"],
    "uneven": ["steps=3", "rollout.prompts_per_step=1", "weighting=tip", "divergence.support=union_top_k"],
    "uneven-sharded": [],
    "rated": [
        "steps=4",
        'reward=["correct", {name="length", label="tokens", weight=-1.0}, {name="format", pattern=".*a.*"}]',
        'reward_combination={name="constrained", thresholds={tokens=0.5}, normalised=true}',
        'loss=[{name="clipped_surrogate", normaliser="sequence_mean", ratio="sequence"}]',
        "optimizer.epochs_per_batch=2",
        "rollout.redraws=1",
    ],
    "followed": [
        "steps=2",
        'reward=[{name="format", pattern=".*[A-M].*"}, {name="length", label="tokens", weight=-1.0}]',
        "rollout.samples_per_prompt=4",
        'reward_combination={name="conflict_averse", measured_every=2}',
        'loss=[{name="policy_gradient", advantage={name="group_reward", scale="none"}}]',
    ],
    "served": ["rollout.engine=vllm", "rollout.prompts_per_step=1", "steps=6"],
}
"""overrides by name; all but those that end in "-sharded" are also made in one process"""
RUNS["followed-sharded"] = [*RUNS["followed"], "runtime.strategy=fsdp2"]
RUNS["uneven-sharded"] = [*RUNS["uneven"], "runtime.strategy=fsdp2", "runtime.shard_teacher=true"]


def overrides(folder: Path, name: str) -> list[str]:
    server = [f"vllm.server={os.environ['STUDENT_SERVER']}"] if name == "served" else []
    return [f"output={folder / name}", *RUNS.get(name, ["steps=6"]), *server]


def in_float64(path: str) -> LanguageModel:
    return load_language_model(ModelSource(path, "float64"), load_tokenizer(path))


def build(folder: Path, name: str, *more: str, processes: Processes | None, resume: bool = False) -> Run:
    config = load_config(folder / "run.toml", [*overrides(folder, name), *more])
    return build_run(config, processes=processes, resume=resume)


def refused(folder: Path, name: str, rank: int, run: Any) -> None:
    """Note why a run ended."""
    try:
        train(run() if callable(run) else run, Observer())
    except TutelageError as problem:
        (folder / f"{name}.{rank}.txt").write_text(f"{type(problem).__name__}: {problem}")


def go(folder: Path, processes: Processes) -> None:
    rank = processes.rank
    for name in RUNS:
        train(build(folder, name, processes=processes), Observer())

    train(build(folder, "resumed", "steps=2", processes=processes), Observer())
    if rank == 0:
        train(build(folder, "resumed", "steps=4", processes=None, resume=True), Observer())
    processes.gather(None)
    train(build(folder, "resumed", "runtime.strategy=fsdp2", processes=processes, resume=True), Observer())

    refused(folder, "different", rank, lambda: build(folder, "different", f"seed={rank}", processes=processes))

    # One run file, and two machines on which the data file is not the same.
    place = folder / f"machine-{rank}"
    place.mkdir()
    rows = (folder / "prompts.jsonl").read_text()
    (place / "data.jsonl").write_text(rows if rank == 0 else rows.replace("What is 2", "How much is 2"))
    (place / "judged.jsonl").write_text(rows if rank == 0 else rows.replace('"6"', '"7"'))
    with contextlib.chdir(place):
        for name, override in {
            "other-prompts": "data=data.jsonl",
            "other-judged": 'evaluation.sets=[{path="judged.jsonl", name="sums"}]',
        }.items():
            refused(folder, name, rank, lambda: build(folder, name, override, processes=processes))  # noqa: B023

    run = build(folder, "nan", "policy=student", processes=processes)
    if rank == 1:
        run.source = replace(run.source, scorer=Spoiling(run.source.scorer))
    refused(folder, "nan", rank, run)

    run = build(folder, "asked", processes=processes)
    before_rollouts(run, 2, rank == 1, signal.SIGTERM)
    refused(folder, "asked", rank, run)

    run = build(folder, "failed", processes=processes)
    if rank == 1:
        run.source = replace(run.source, engine=Watched(run.source.engine, fail))
    refused(folder, "failed", rank, run)

    killed(folder, "killed", processes)


def killed(folder: Path, name: str, processes: Processes) -> None:
    """A run whose second process is killed as it begins step 3, one step after a checkpoint."""
    heartbeat.LOST_AFTER_SECONDS = 6.0
    run = build(folder, name, processes=processes)
    before_rollouts(run, 3, processes.rank == 1, signal.SIGKILL)
    train(run, Observer())


@dataclass
class Watched:
    """An engine that calls a function before each request."""

    engine: Engine
    before: Callable[[Request], None]

    def refusal(self, policy: Policy) -> str | None:
        return self.engine.refusal(policy)

    def sync(self, policy: Policy, step: int) -> None:
        self.engine.sync(policy, step)

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        self.before(request)
        return self.engine.answer(policy, request)


@dataclass
class Spoiling:
    """A scorer whose teacher says NaN."""

    scorer: Scorer

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        return [spoilt(each) for each in self.scorer.score(rollouts, keep_hidden=keep_hidden)]


def fail(_: Request) -> None:
    raise DataError("no such prompt")


def spoilt(rollout: Any) -> Any:
    known = rollout.teacher.support_logprobs_TK
    return rollout.with_tokenwise({"teacher.support_logprobs_TK": torch.full_like(known, torch.nan)})


def before_rollouts(run: Run, step: int, is_here: bool, number: int) -> None:
    """Send a signal to this process when it begins to sample for a step."""

    def signal_or_not(request: Request) -> None:
        if is_here and request.step == step and request.records_statistics:
            os.kill(os.getpid(), number)

    run.source = replace(run.source, engine=Watched(run.source.engine, signal_or_not))


def together(work: Callable[[Processes], None]) -> None:
    torch.set_num_threads(1)
    try:
        with joined() as processes:
            assert processes is not None
            work(processes)
    except TutelageError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")


def fork_all(folder: Path, ports: list[str]) -> None:
    """Start the four processes, wait for them, and note how each ended."""
    for name in ("transformers.models.qwen3.modeling_qwen3", "tutelage.runtime.distributed"):
        importlib.import_module(name)  # what a run imports when it needs it
    gc.freeze()  # a collection would write to memory that the forks share
    os.environ["STUDENT_SERVER"] = f"http://127.0.0.1:{ports[2]}"
    children = {}
    for kind, number in (("rank", 0), ("rank", 1), ("node", 0), ("node", 1)):
        name = f"{kind}-{number}"
        child = os.fork()
        if not child:
            output = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if kind == "rank":
                place = {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
                os.environ.update(place)
                together(partial(go, folder))
            else:
                nodes = (
                    "--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id tiny --start-method fork --run-path"
                )
                meeting = ["--node-rank", str(number), "--rdzv-endpoint", f"localhost:{ports[1]}"]
                try:
                    torchrun.main([*meeting, *nodes.split(), __file__, str(folder)])
                except ChildFailedError:
                    os._exit(1)  # tidying up a fork takes seconds
            return
        children[name] = child
    student_server(in_float64, int(ports[2]))  # not before the forks, which would have its thread's locks
    codes = {name: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for name, child in children.items()}
    (folder / "exit-codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    if sys.argv[2:]:
        fork_all(Path(sys.argv[1]), sys.argv[2:])
    else:  # one of torchrun's
        together(partial(killed, Path(sys.argv[1]), "nodes"))
