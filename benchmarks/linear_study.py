"""How much of a softmax student comes back after linearising, and what is gained?  Packaged, some or all layers.

    python benchmarks/linear_study.py OUTPUT [--seeds 3] [--threads 1]
    python benchmarks/linear_study.py OUTPUT --scale 4 --seeds 1     # four times as many texts and steps
    python benchmarks/linear_study.py OUTPUT --only speed

The packaged student gets ReBased in its middle layer, or in all three, and its softmax original is the teacher. First
attention transfer on answers of the teacher, drawn once; then, from its end, three ways of recipes/linear_student.toml,
moved to the packaged world: plain OPD, TRB, and SFT on the teacher's answers. Each is judged by greedy and by sampled
answers to the same problems, as are the original and the student before and after the transfer. A seed decides the new
weights, all draws, and the order of prompts; problems are the same. Recoveries of one seed begin with the same weights.

A part takes 2 to 25 processor seconds, three seeds six minutes of them. Seeds are done one after the other, so
what is there at any time is balanced.

Speed is that of decoding alone: 16 answers of 32 tokens after contexts of 8, 64 and 256 tokens, in processor seconds,
contenders in turns. The original decodes once through our own forward, which softmax models get, and once through the
module's, which linear ones get. Memory is what one answer takes at such a context and at the end of 4,096 tokens: keys,
values and states, the states once.

OUTPUT/results.json is written after every part; parts that it has are not repeated. OUTPUT/results.md has the tables.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measuring import describe, machine, run_on_threads, take_turns, write_json
from tutelage.config import (
    DataConfig,
    EvaluationAssembly,
    EvaluationConfig,
    EvaluationSetConfig,
    ModelConfig,
    build_run,
    read_run_file,
    resolve_config,
)
from tutelage.demo import student_path
from tutelage.demo.embedded import embedded_files
from tutelage.evaluation import mark
from tutelage.losses.layers import AttentionTransfer
from tutelage.models import (
    LanguageModel,
    compared_outputs,
    export_model,
    linearise,
    load_language_model,
    load_tokenizer,
)
from tutelage.policies import Student
from tutelage.rollout import Limits, PairedEngine
from tutelage.training import Observer, named_checkpoints, train

RECIPE = Path(__file__).resolve().parents[1] / "recipes/linear_student.toml"
LAYERS = {"some": (1,), "all": (0, 1, 2)}
TEXTS, TRANSFER_STEPS, TRANSFER_ROWS, TRANSFER_RATE = 160, 128, 16, 1e-2
RECOVERY_STEPS, PROMPTS, SAMPLES, NEW_TOKENS, RECOVERY_RATE = 16, 8, 2, 90, 2e-4
PROBLEMS, ANSWERS = 100, 2
CONTEXTS, DECODED_ROWS, DECODED_TOKENS, ROUNDS = (8, 64, 256), 16, 32, 3
REVERSE_KL = {"name": "reverse_kl", "support": "student_top_k", "top_k": 16, "rest": "tail"}
# What differs after the transfer; the teacher helps TRB for the first half.
RECOVERIES: dict[str, dict[str, Any]] = {
    "opd": {"policy": {"name": "student"}, "divergence": REVERSE_KL},
    "trb": {
        "policy": {
            "name": "trust_region",
            "kl_radius": {"schedule": "linear", "start": 0.2, "stop": 0.0, "steps": RECOVERY_STEPS // 2},
        },
        "divergence": REVERSE_KL,
    },
    "sft": {"policy": {"name": "teacher"}, "divergence": {"name": "sampled_nll"}},
}


def main() -> None:
    """Do what is missing, seed by seed, and write the tables after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=int, default=1, help="what texts and steps are multiplied with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("speed", "quality"))
    options = parser.parse_args()
    run_on_threads(options.threads)
    study = Study(options.output, options.scale)
    if options.only != "quality":
        study.part("speed", study.speed)
    if options.only != "speed":
        study.part("original", lambda: study.judged(str(student_path()), 0))
        for seed in range(options.seeds):
            for share in LAYERS:
                study.part(f"{share}, seed {seed}, linearised", lambda s=share, n=seed: study.linearised(s, n))
                study.part(f"{share}, seed {seed}, transfer", lambda s=share, n=seed: study.transferred(s, n))
                for way in RECOVERIES:
                    study.part(f"{share}, seed {seed}, {way}", lambda s=share, n=seed, w=way: study.recovered(s, n, w))


class Study:
    """The folder with all runs, and what is known so far."""

    def __init__(self, folder: Path, scale: int = 1) -> None:
        self.folder, self.file, self.scale = folder, folder / "results.json", scale
        (folder / "data").mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        files = embedded_files(folder / "data", steps=scale * TEXTS // 16, num_problems=PROBLEMS, seed=0)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        self.prompts, self.problems = files

    def part(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure what is not known yet, and write everything."""
        if name not in self.results:
            started = time.process_time()
            found = measure()
            self.results[name] = found | {"processor_seconds": time.process_time() - started, "machine": machine()}
            write_json(self.file, self.results)
            (self.folder / "results.md").write_text(tables(self.results), encoding="utf-8")
            print(name, {k: v for k, v in found.items() if isinstance(v, float)}, flush=True)

    def linearised(self, share: str, seed: int) -> dict[str, Any]:
        """The student with new layers, untrained."""
        folder = self.folder / f"{share}-{seed}"
        if not folder.exists():
            made = linearise(original().module, LAYERS[share], seed=seed)
            export_model(LanguageModel(made.module, original().tokenizer, original().stop_ids), torch.float32, folder)
        return self.judged(str(folder), seed)

    def transferred(self, share: str, seed: int) -> dict[str, Any]:
        """The student whose linear layers have learned to give what softmax attention gave in their place."""
        folder, teacher = self.folder / f"{share}-{seed}-transfer", original()
        start = str(self.folder / f"{share}-{seed}")
        student = load_language_model(start, load_tokenizer(start))
        rows = [json.loads(line) for line in self.prompts.read_text().splitlines()]
        questions = [[{"role": "user", "content": row["problem"]}] for row in rows]
        prompts = [
            teacher.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
            for question in questions
        ]
        engine = PairedEngine(teacher, limits=Limits(max_rows=TEXTS))
        num_steps = self.scale * TRANSFER_STEPS
        drawn = engine.generate(Student(), prompts, max_new_tokens=NEW_TOKENS, seed=seed, records_statistics=False)
        texts = [[*rollout.prompt_tokens, *rollout.response_tokens] for rollout in drawn]
        mixers = [student.module.model.layers[place].linear_attn for place in LAYERS[share]]
        learning = [parameter.requires_grad_() for mixer in mixers for parameter in mixer.parameters()]
        optimizer = torch.optim.AdamW(learning, lr=TRANSFER_RATE, weight_decay=0.0)
        errors = []
        for step in range(num_steps):
            batch = [texts[(step * TRANSFER_ROWS + row) % len(texts)] for row in range(TRANSFER_ROWS)]
            error = AttentionTransfer().on_layers(*compared_outputs(student, teacher, batch, [0] * len(batch))).mean()
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = TRANSFER_RATE * min(1.0, (step + 1) / 4) * (1 - step / num_steps)
            optimizer.step()
            errors.append(float(error.detach()))
        if not folder.exists():
            export_model(student, torch.float32, folder)
        return self.judged(str(folder), seed) | {"first_loss": errors[0], "last_loss": errors[-1]}

    def recovered(self, share: str, seed: int, way: str) -> dict[str, Any]:
        """The student after the transfer, trained on."""
        start = self.folder / f"{share}-{seed}-transfer"
        output = self.folder / f"{share}-{seed}-{way}"
        tables_of_run = read_run_file(RECIPE) | {
            "name": f"{share}-{seed}-{way}",
            "output": str(output),
            "seed": seed,
            "steps": self.scale * RECOVERY_STEPS,
            "student": {"path": str(start)},
            "teacher": {"path": str(student_path())},
            "data": {"path": str(self.prompts)},
            "rollout": {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "max_new_tokens": NEW_TOKENS},
            "optimizer": {
                "learning_rate": RECOVERY_RATE,
                "warmup_steps": 4,
                "weight_decay": 0.0,
                "max_grad_norm": 1.0,
            },
            "checkpoint": {"every": 1000},
            "evaluation": {"sets": []},
            "runtime": {"device": "cpu", "threads": 1},
            **copy.deepcopy(RECOVERIES[way]),
        }
        tables_of_run.pop("phase")
        if way == "trb":
            tables_of_run["policy"]["kl_radius"]["steps"] *= self.scale
        train(build_run(resolve_config(tables_of_run), resume=output.exists()), Observer())
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found = self.judged(str(named_checkpoints(output / "checkpoints")["last"]), seed)
        ends = {"first_loss": records[0]["loss"], "last_loss": records[-1]["loss"]}
        return found | ends | {"mismatch": max(record["logprob_mismatch"] for record in records)}

    def judged(self, path: str, seed: int) -> dict[str, Any]:
        """Shares of right answers, greedy and sampled."""
        parts = EvaluationAssembly(
            ModelConfig.model_validate({"path": path}),
            DataConfig(path="none"),
            EvaluationConfig(
                sets=[EvaluationSetConfig(path=str(self.problems))], num_samples=ANSWERS, temperature=1.0, greedy=True
            ),
            NEW_TOKENS,
        )
        engine = parts.engine("cpu", Limits(max_rows=PROBLEMS * ANSWERS))
        found = {}
        for problems, policy, drawing in parts.plan.jobs(seed):
            kind = "greedy" if problems.name.endswith("-greedy") else "sampled"
            found[kind] = mark(engine, problems, policy, drawing, verify=parts.verify).result().pass_at_1
        return found

    def speed(self) -> dict[str, Any]:
        """Tokens a second and bytes an answer, by context."""
        contenders = {"softmax, our forward": original(), "softmax, the module's": original(fast_forward=False)}
        for share, layers in LAYERS.items():
            made = linearise(original().module, layers)
            contenders[f"linear, {share}"] = LanguageModel(made.module, original().tokenizer, ())
        found: dict[str, Any] = {}
        for context in CONTEXTS:
            turns = {name: partial(decoded, model, context) for name, model in contenders.items()}
            results = take_turns(turns, ROUNDS, title=f"{context} tokens", clock="cpu")
            for name, measurements in results.items():
                model = contenders[name]
                found[f"{name}, {context}"] = {
                    "tokens_per_second": statistics.median(m["tokens_per_second"] for m in measurements),
                    "bytes": model.cache_bytes_per_slot * context + model.cache_bytes_per_row // 2,
                }
        for name, model in contenders.items():
            found[f"{name}, 4096"] = {"bytes": model.cache_bytes_per_slot * 4096 + model.cache_bytes_per_row // 2}
        return found


def original(**settings: Any) -> LanguageModel:
    """The packaged student, which never stops where its stop ids are taken away."""
    path = str(student_path())
    model = load_language_model(path, load_tokenizer(path))
    return LanguageModel(model.module, model.tokenizer, model.stop_ids, name="student", **settings)


def decoded(model: LanguageModel, context: int, seed: int) -> dict[str, Any]:
    """Seconds of decoding so many tokens of every row after a context, which is read before the clock starts."""
    prompts = [[3 + (row * 7 + place) % 300 for place in range(context)] for row in range(DECODED_ROWS)]
    engine = PairedEngine(
        LanguageModel(model.module, model.tokenizer, (), fast_forward=model.fast_forward),
        limits=Limits(max_rows=DECODED_ROWS),
    )
    # A prompt costs a forward, too: what one token takes is taken from what all take.
    seconds = []
    for num_new in (1, 1 + DECODED_TOKENS):
        started = time.process_time()
        engine.generate(Student(), prompts, max_new_tokens=num_new, seed=seed, records_statistics=False)
        seconds.append(time.process_time() - started)
    return {"tokens": DECODED_ROWS * DECODED_TOKENS, "seconds": seconds[1] - seconds[0]}


def tables(results: Mapping[str, Any]) -> str:
    """What is known, as Markdown."""
    lines = ["| student | greedy % | sampled % |", "|---|---|---|"]
    if "original" in results:
        lines.append(f"| softmax original | {_percent([results['original']], 'greedy')} | "
                     f"{_percent([results['original']], 'sampled')} |")  # fmt: skip
    for share in LAYERS:
        for way in ("linearised", "transfer", *RECOVERIES):
            found = [value for name, value in results.items() if name.startswith(f"{share}, ") and name.endswith(way)]
            if found:
                cells = " | ".join(_percent(found, kind) for kind in ("greedy", "sampled"))
                lines.append(f"| {share} layers, {way} ({len(found)} seeds) | {cells} |")
    if "speed" in results:
        speed = results["speed"]
        lines += [
            "",
            "| | " + " | ".join(f"{context} tokens" for context in (*CONTEXTS, 4096)) + " |",
            "|---|---|---|---|---|",
        ]
        for name in dict.fromkeys(
            key.rsplit(", ", 1)[0] for key in speed if key not in ("processor_seconds", "machine")
        ):
            base = "softmax, the module's"
            cells = []
            for context in (*CONTEXTS, 4096):
                entry = speed[f"{name}, {context}"]
                kib = f"{entry['bytes'] / 2**10:.0f} KiB"
                rate = entry.get("tokens_per_second")
                over = None if rate is None else rate / speed[f"{base}, {context}"]["tokens_per_second"]
                cells.append(kib if over is None else f"{over:.2f}, {kib}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
        lines.append(f"Decoding speed over that of the softmax original through the module's forward, and memory of an "
                     f"answer. {describe(speed['machine'])}")  # fmt: skip
    return "\n".join(lines) + "\n"


def _percent(found: Sequence[Mapping[str, Any]], kind: str) -> str:
    values = [100 * value[kind] for value in found]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
