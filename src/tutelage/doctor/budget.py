"""Does it fit, and how long will it take? Memory from shapes alone; time from a few answers at the real settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tutelage.config import RunAssembly
from tutelage.config.models import as_it_starts, load_meta_model
from tutelage.doctor.finding import Finding, Verdict
from tutelage.doctor.trial import seed_of
from tutelage.models import LanguageModel
from tutelage.rollout.decoding import MAX_DRAFT_LENGTH
from tutelage.rollout.engines.paired import CACHE_SHARE
from tutelage.rollout.reading import tokens_per_chunk
from tutelage.training import PromptOrder, Stopwatch, collect

__all__ = ["disk", "forecast", "machine_bytes", "memory", "time_per_step"]

GIB = 2**30
NUM_PROMPTS = 4  # of the measured step
TIGHT = 0.85  # share of the machine's memory above which a forecast cannot promise that a run fits
LIVE_LOGITS = 5  # float32 copies of a chunk's logits that are alive at once in the backward pass
QUANTISED_BITS = 4.5  # of a weight in NF4 with its share of the quantised scales, rounded up
LIVE_BLEND = 6  # float64-sized rows of both models while a policy picks a token


def memory(run: RunAssembly, num_processes: int = 1) -> Finding:
    """Most bytes that each part of a step needs, against what the device has."""
    needed, device = forecast(run, num_processes), run.runtime.device
    there = machine_bytes(device)
    if num_processes > 1 and not device.startswith("cuda"):  # where each has a GPU of its own
        there //= num_processes
    details = tuple(
        f"{phase}: {_size(sum(parts.values()))} = "
        + " + ".join(f"{name} {_size(size)}" for name, size in parts.items())
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
        "activations": "Set runtime.gradient_checkpointing = true, or lower runtime.micro_batch_tokens.",
        "logits": "Lower runtime.micro_batch_tokens.",
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
    """Part of a step -> what takes memory then -> bytes.

    Weights, gradients and AdamW's two moments are exact, and so are the caches at their fullest; activations and logits
    are estimates: 10 widths and 4 inner widths per token and layer, and a handful of copies of a chunk of logits. With
    an adapter, gradients and moments are its own; quantised weights are taken at 4.5 bits, scales included.

    With several processes, these are the bytes of one. It has its share of a step's answers; under "fsdp2" its part of
    gradients, moments and the weights that learn, beside a whole copy that decodes; and its part of a sharded teacher.
    """
    config, meta_models = run.config, dict(run.meta_models)
    if config.teacher.server is not None:  # its memory is another machine's
        del meta_models["teacher"]
    student, rollout, runtime = meta_models["student"], config.rollout, config.runtime
    if run.needs_reference and "reference" not in meta_models and student.trainable.changes_backbone:
        # A copy of the student; that of an adapter is the same backbone.
        meta_models["reference"] = load_meta_model(as_it_starts(config), None)
    trained = _trained(student)
    num_parts = num_processes if runtime.strategy == "fsdp2" else 1
    learned_here = -(-trained // num_parts)
    own = _weights(student, config.student.quantization) + (learned_here if num_parts > 1 else 0)
    others = sum(_weights(model) for name, model in meta_models.items() if name not in ("student", "teacher"))
    if "teacher" in meta_models:
        others += _weights_here(meta_models["teacher"], num_processes if runtime.shard_teacher else 1)
    resident = {"student": own, "teacher": others, "moments": 2 * learned_here}
    asks_teacher = any(phase.recipe.policy.needs_teacher for phase in run.phases)
    prompts, size = run.prompts.prompts, run.vocabulary.size
    longest = max(max(len(prompt.student_tokens), len(prompt.teacher_tokens or ())) for prompt in prompts)
    answers = -(-rollout.prompts_per_step // num_processes) * rollout.samples_per_prompt
    rows = min(rollout.max_rows, answers)
    teachers = [model for name, model in meta_models.items() if name.startswith("teacher")]
    slot = student.cache_bytes_per_slot + (sum(t.cache_bytes_per_slot for t in teachers) if asks_teacher else 0)
    caches = rows * (longest + rollout.max_new_tokens + MAX_DRAFT_LENGTH) * slot
    if rollout.cache_gib is not None:
        caches = min(caches, int(rollout.cache_gib * GIB))
    elif (device := run.runtime.device).startswith("cuda"):
        caches = min(caches, int(CACHE_SHARE * machine_bytes(device)))
    batch_tokens = answers * (longest + rollout.max_new_tokens)

    def at_once(limit: int) -> int:  # a single answer is never split
        return min(batch_tokens, max(limit, longest + rollout.max_new_tokens))

    def logits(tokens: int) -> int:
        return min(tokens, tokens_per_chunk(run.vocabulary)) * size * 4 * LIVE_LOGITS

    learned, scored = at_once(config.runtime.micro_batch_tokens), at_once(rollout.score_tokens)
    largest = max(teachers, key=_layer_numbers, default=student)  # without a teacher here, the student reads again
    scoring = scored * _layer_numbers(largest) * largest.module.dtype.itemsize
    # Under autocast, and with a copy of the weights in its type while decoding, most numbers are of that type.
    itemsize = student.module.dtype.itemsize if runtime.autocast is None else 2
    copies = {} if runtime.autocast is None else {"weights in bfloat16": _weights(student) // 2}
    num_layers, width = int(student.config.num_hidden_layers), int(student.config.hidden_size)
    per_token = num_layers * _layer_numbers(student) * itemsize
    if runtime.gradient_checkpointing:  # every layer's input, and one layer while it is computed again
        per_token = num_layers * width * student.module.dtype.itemsize + _layer_numbers(student) * itemsize
    learning = learned * per_token
    return {
        "rollout": {**resident, **copies, "caches": caches, "logits": rows * size * 8 * LIVE_BLEND},
        "scoring": {**resident, "activations": scoring, "logits": logits(scored)},
        "update": {**resident, "gradients": learned_here, "activations": learning, "logits": logits(learned)},
    }


def disk(run: RunAssembly) -> Finding:
    """Bytes of all checkpoints that stay, and of the one being written, against what is free."""
    settings, config = run.config.checkpoint, run.config
    one = 3 * _trained(run.meta_models["student"])  # with AdamW's two moments
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


def machine_bytes(device: str) -> int:
    """Memory of an accelerator; of the machine, or of the container where that is less, on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(there, int(text)) if text.isdigit() else there


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


def _weights(model: LanguageModel, quantization: str | None = None) -> int:
    """Bytes of all weights; where they are quantised, embeddings, head, vectors and what learns are not."""
    named, learning = dict(model.module.named_parameters()), model.trainable.parameters()
    quantised = [
        weight
        for name, weight in named.items()
        if quantization is not None and weight.ndim == 2 and ".layers." in f".{name}" and name not in learning
    ]
    full = _size_of(named.values()) - _size_of(quantised)
    return full + int(sum(weight.numel() for weight in quantised) * QUANTISED_BITS / 8)


def _weights_here(model: LanguageModel, num_parts: int) -> int:
    """Bytes of a model whose layers are in so many parts, of which one is here; embedding and head are whole."""
    ends = (model.module.get_input_embeddings().weight, model.module.get_output_embeddings().weight)
    whole = _size_of({id(weight): weight for weight in ends}.values())
    return whole + -(-(_weights(model) - whole) // num_parts)


def _trained(student: LanguageModel) -> int:
    """Bytes of the weights that learn."""
    return _size_of(student.trainable.parameters().values())


def _size_of(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _layer_numbers(model: LanguageModel) -> int:
    """Numbers that are kept of one token in one layer while it is read, roughly."""
    config = model.config
    return 10 * int(config.hidden_size) + 4 * int(getattr(config, "intermediate_size", 4 * config.hidden_size))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
