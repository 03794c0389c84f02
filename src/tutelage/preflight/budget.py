"""Does it fit, and how long will it take? Memory from shapes alone; time from a few answers at the real settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from tutelage.config import RunAssembly
from tutelage.config.step_memory import GIB, free_bytes, machine_bytes, trained_bytes
from tutelage.preflight.finding import Finding, Verdict
from tutelage.preflight.trial import seed_of
from tutelage.training import PromptOrder, Stopwatch, collect

__all__ = ["disk", "forecast", "memory", "time_per_step"]

NUM_PROMPTS = 4  # of the measured step
TIGHT = 0.85  # share of the machine's memory above which a forecast cannot promise that a run fits


def memory(run: RunAssembly, num_processes: int = 1) -> Finding:
    """Most bytes that each part of a step needs, against what the device has."""
    needed, device = forecast(run, num_processes), run.runtime.device
    there = machine_bytes(device)
    if num_processes > 1 and not device.startswith("cuda"):  # where each has a GPU of its own
        there //= num_processes
    details = tuple(
        f"{phase}: {_size(sum(parts.values()))} = "
        + " + ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
        for phase, parts in needed.items()
    )
    phase, parts = max(needed.items(), key=lambda item: sum(item[1].values()))
    most = sum(parts.values())
    each = "" if num_processes == 1 else f" for each of {num_processes} processes"
    text = f"at most {_size(most)}, in the {phase}, of {_size(there)}{each}"
    if most <= TIGHT * there:
        return Finding(Verdict.ok, text, details=details)
    largest = max(parts, key=lambda name: parts[name])
    remedies = {
        "caches": "Set rollout.cache_gib, or lower rollout.max_rows.",
        "states": "Set rollout.cache_gib, or lower rollout.max_rows; recurrent states are as large for short answers.",
        "activations": "Set runtime.gradient_checkpointing = true, or lower runtime.micro_batch_tokens.",
        "logits": "Lower runtime.micro_batch_tokens.",
        "reward models": "Set reward.dtype = 'bfloat16', or use a smaller reward model.",
        "reward batch": "Lower reward.max_batch_tokens.",
    }
    remedy = remedies.get(largest, "Load the models in bfloat16 (student.dtype, teacher.dtype), or use smaller ones.")
    is_too_much = most > there
    return Finding(
        Verdict.error if is_too_much else Verdict.warning,
        f"{text}{'' if is_too_much else ', which is tight for a forecast'}; most of it {largest}",
        remedy,
        details,
    )


def forecast(run: RunAssembly, num_processes: int = 1) -> dict[str, dict[str, int]]:
    """Part of a step -> what takes memory then -> bytes; see `config.step_memory`."""
    parts, tokens = run.step_memory(num_processes), run.config.runtime.micro_batch_tokens
    return parts.forecast(parts.fitting_micro_batch(free_bytes(parts.device)) if tokens is None else tokens)


def disk(run: RunAssembly) -> Finding:
    """Bytes of all checkpoints that stay, and of the one being written, against what is free."""
    settings, config = run.config.checkpoint, run.config
    one = 3 * trained_bytes(run.meta_models["student"])  # with AdamW's two moments
    at_once = min(settings.keep_last, -(-config.steps // settings.every)) + bool(config.evaluation.sets) + 1
    folder = Path(config.output_folder).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    text = f"checkpoints of {_size(one)} each, {at_once} of them at most; {_size(free)} are free"
    if at_once * one <= TIGHT * free:
        return Finding(Verdict.ok, text)
    return Finding(
        Verdict.error if at_once * one > free else Verdict.warning,
        text,
        "Make room, lower checkpoint.keep_last, or choose another place with --set output=FOLDER.",
    )


def time_per_step(run: RunAssembly, num_processes: int = 1) -> Finding:
    """Seconds of a step from a real one with few prompts; rows decoded together share their time, so it is a bound."""
    config = run.config
    num_prompts = min(NUM_PROMPTS, config.rollout.prompts_per_step, len(run.prompts.prompts))
    few = PromptOrder(num_prompts, num_prompts)
    source, watch, recipe = replace(run.source, order=few, seed=seed_of(run)), Stopwatch(), run.phases[0].recipe_at(0)
    update = run.learning.update_for(source)
    pending = update.prepare(0, recipe, partial(collect, source, 0, recipe, watch))
    update.abandon()
    watch.lap("loss")
    factor = -(-config.rollout.prompts_per_step // num_processes) / num_prompts
    seconds = {name.removeprefix("seconds_"): value * factor for name, value in watch.seconds.items()}
    split = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items())
    step = sum(seconds.values())
    loss = "" if pending.loss is None else f"; loss of the first step about {pending.loss:.3f}"
    return Finding(
        Verdict.ok,
        f"at most about {step:.2g} s per step ({split}), {_duration(step * config.steps)} for {config.steps} steps, "
        f"evaluations aside{loss}",
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
