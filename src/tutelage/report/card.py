"""A model card for a checkpoint of a run: what was trained on what, how, and with which numbers, from the run's files.

The card is a Markdown text with the Hugging Face hub's header. It is made to be shown to others, so folders of this
machine appear by their last part and addresses of servers not at all.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w

from tutelage.errors import DataError, in_short
from tutelage.report.lines import strict_objects
from tutelage.report.plain import in_line
from tutelage.report.records import EVALUATIONS_FILE, RunRecords, read_run

__all__ = ["model_card"]

CONFIG_FILE, FINGERPRINTS_FILE = "config.toml", "fingerprints.json"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Tables that are about this machine, or that another run would not need.
NOT_OF_THE_RUN = ("output", "runtime", "logging", "vllm")


def model_card(run: Path, step: int) -> str:
    """The card of a run's checkpoint, as Markdown.

    Args:
      run: the run's folder.
      step: of the checkpoint: its weights after so many updates.
    Raises:
      DataError: a file of the run is missing or damaged.
    """
    return _Card(run, step).text


@dataclass(frozen=True)
class _Card:
    """The parts of a card, each a text."""

    run: Path
    step: int

    @property
    def text(self) -> str:
        parts = (self.header, self.opening, self.training, self.numbers, self.usage, self.run_file)
        return "\n\n".join(part for part in parts if part) + "\n"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        try:
            return tomllib.loads((self.run / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as problem:
            raise DataError(f"{self.run} holds no run that can be read: {in_short(problem)}") from problem

    @cached_property
    def records(self) -> RunRecords:
        return read_run(self.run)

    @cached_property
    def fingerprints(self) -> Mapping[str, Any]:
        path = self.run / FINGERPRINTS_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{path} is damaged: {in_short(problem)}") from problem
        return found if isinstance(found, dict) else {}

    @property
    def teachers(self) -> list[str]:
        """Where the teachers are from; none of a run that learns without."""
        teacher = self.config.get("teacher", {})
        if teacher.get("weights") == "student":
            return [self.config["student"]["path"]]
        paths = [teacher["path"]] if "path" in teacher else []
        others = [*teacher.get("experts", []), *teacher.get("routes", {}).values()]
        return paths + [each["path"] for each in others]

    @property
    def header(self) -> str:
        base = [path] if self._is_on_hub(path := self.config["student"]["path"]) else []
        data = [path] if self._is_on_hub(path := self.config["data"]["path"].partition(":")[0]) else []
        policy = self.config["policy"]["name"]
        kind = ["on-policy-distillation"] if self.teachers and policy != "offline" else []
        fields: dict[str, Any] = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["tutelage", *kind, policy],
        }
        fields |= {"base_model": base[0]} if base else {}
        fields |= {"datasets": data} if data else {}
        # JSON is YAML.
        lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
        return "\n".join(["---", *lines, "---"])

    @property
    def opening(self) -> str:
        student = self._shown(self.config["student"]["path"])
        by = " and ".join(map(self._shown, self.teachers))
        learned = f"trained with {by} as teacher" if by else "trained on what its answers were worth"
        version = self.fingerprints.get("inputs", {}).get("versions", {}).get("tutelage", "")
        return (
            f"# {in_line(self.config['name'])}\n\n"
            f"{student}, {learned}, by Tutelage {version}: the weights after {self.step:,} of "
            f"{self.config['steps']:,} steps."
        )

    @property
    def training(self) -> str:
        """What was trained on what, a line each."""
        config, rollout = self.config, self.config["rollout"]
        trainable = config["student"].get("adapter") or config["student"].get("trainable")
        losses = config.get("loss") or [config["divergence"]]
        data = config["data"]
        rows = {
            "student": self._shown(config["student"]["path"]),
            "teacher": ", ".join(map(self._shown, self.teachers)) or "none",
            "prompts": f"{self._shown(data['path'])}, split {data['split']}" + self._count_of_prompts(),
            "phases": "; ".join(str(phase.get("name", "")) for phase in config.get("phase", []))
            + (", see the run file" if config.get("phase") else ""),
            "policy": _member(config["policy"]),
            "target": _member(config["target"]),
            "loss": "; ".join(map(_member, losses)),
            "rewards": "; ".join(map(_member, config.get("reward", []))),
            "what learns": "all weights" if trainable is None else f"{_member(trainable)}, merged into these weights",
            "step": f"{rollout['prompts_per_step']} prompts x {rollout['samples_per_prompt']} answers of at most "
            f"{rollout['max_new_tokens']:,} tokens",
            "optimizer": _member(config["optimizer"]),
            "seed": str(config["seed"]),
        }
        lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value]
        return "\n".join(["## What was trained on what", "", "| | |", "|---|---|", *lines])

    @property
    def numbers(self) -> str:
        """Evaluations before training and of this checkpoint, and what the training took."""
        metrics = self.records.metrics
        done = metrics.steps < self.step
        tokens, seconds = (metrics[key][done] for key in ("response_tokens_total", "seconds"))
        took = f"{int(done.sum()):,} steps"
        if len(tokens) and tokens[-1] == tokens[-1]:
            took += f", {int(tokens[-1]):,} tokens of answers"
        if len(seconds) and (seconds == seconds).all():
            total = seconds.sum()
            took += f", {total:.3g} seconds" if total < 600 else f", {total / 3600:.3g} hours"
        losses = metrics["loss"][done]
        if len(losses):
            took += f"; the loss was {losses[0]:.4g} at the first step and {losses[-1]:.4g} at the last"
        return "\n".join(["## Numbers", "", *self._evaluations(), f"The training: {took}."])

    def _evaluations(self) -> list[str]:
        path = self.run / EVALUATIONS_FILE
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for line in strict_objects(path) if path.is_file() else ():
            if isinstance(line.get("pass_at_1"), int | float):
                found.setdefault(str(line.get("name")), {})[int(line.get("step", -1))] = line
        if not any(self.step in lines for lines in found.values()):
            return [f"This checkpoint was not evaluated (after {self.step:,} steps).", ""]
        rows = []
        for name, lines in found.items():
            if (now := lines.get(self.step)) is not None:
                before = "" if self.step == 0 or 0 not in lines else _percent(lines[0])
                asked = f"{now.get('num_problems')} x {now.get('num_samples')}, temperature {now.get('temperature')}"
                rows.append(f"| {_cell(name)} | {asked} | {before} | {_percent(now)} |")
        return [
            "| problems | answers | pass@1 before | pass@1 of this model |",
            "|---|---|---|---|",
            *rows,
            "",
            "In brackets the 95% interval over problems. It is one run: the spread between seeds is not in it.",
            "",
        ]

    @property
    def usage(self) -> str:
        return (
            "## Use\n\nA plain `transformers` model: `AutoModelForCausalLM.from_pretrained(FOLDER_OR_ID)`. "
            + ("It was trained with a system prompt, see below. " if self.config["data"].get("system_prompt") else "")
            + "Its licence is for who publishes it to name: it follows from those of the student and the data."
        )

    @property
    def run_file(self) -> str:
        shown = {key: _without_places(value) for key, value in self.config.items() if key not in NOT_OF_THE_RUN}
        text = tomli_w.dumps(shown)
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
        return f"## The run file\n\n{fence}toml\n{text}{fence}"

    def _count_of_prompts(self) -> str:
        count = self.fingerprints.get("inputs", {}).get("prompts", {}).get("count")
        return f", {count:,} of them" if isinstance(count, int) else ""

    def _is_on_hub(self, path: str) -> bool:
        places = [Path(path), Path(self.fingerprints.get("started_in", ".")) / path]
        return HUB_ID.fullmatch(path) is not None and not any(place.exists() for place in places)

    def _shown(self, path: str) -> str:
        return f"`{in_line(path if self._is_on_hub(path.partition(':')[0]) else Path(path).name)}`"


def _member(table: Mapping[str, Any]) -> str:
    """A part with its settings in a line: "trust_region, kl_radius = {schedule = ...}"."""
    name = "name" if "name" in table else "method"
    settings = [f"{key} = {_value(value)}" for key, value in table.items() if key != name]
    return ", ".join([str(table.get(name, "")), *settings])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(_without_places(value))


def _percent(line: Mapping[str, Any]) -> str:
    low, high = line.get("pass_at_1_interval") or (None, None)
    interval = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * line['pass_at_1']:.1f}%{interval}"


def _cell(text: str) -> str:
    return in_line(text).replace("|", "\\|")


def _without_places(value: Any, key: str = "") -> Any:
    """A setting without what only this machine knows: of a folder its last part, of a server that there is one."""
    if isinstance(value, Mapping):
        return {name: _without_places(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if key == "server":
        return "http://server"
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value else value
