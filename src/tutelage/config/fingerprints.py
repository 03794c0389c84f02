"""Does a run read what it read when it began?  Digests of all that decides its numbers, kept in its folder.

They are digests of content: of the tokens that the models read and the bytes of their weights. So a file that was moved
counts as the same, and one that was edited in place does not. They are compared across the processes of a run, and on
`--resume`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tutelage.config.model_sections import ModelConfig
from tutelage.config.models import is_served, other_models
from tutelage.config.prompts import Prompts
from tutelage.config.schema import RunConfig
from tutelage.config.tokenizers import Tokenizers
from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationSet, TextSet
from tutelage.models import Vocabulary, tokenizer_fingerprint, weights_fingerprint
from tutelage.rollout import ScoreCache
from tutelage.runtime import LocalRuntime
from tutelage.tasks import excerpt
from tutelage.types import Prompt

__all__ = [
    "INPUTS",
    "Inputs",
    "ModelHashes",
    "check_accepted",
    "differences",
    "evaluation_inputs",
    "input_differences",
    "models_read",
    "prompt_inputs",
    "score_inputs",
    "text_inputs",
    "tokenizer_inputs",
    "version_inputs",
    "vocabulary_inputs",
    "weights_by_role",
]

INPUTS = {
    "prompts": "the prompts that data.path gives",
    "answers": "the right answers that data.path gives",
    "evaluation": "the problems that evaluation.sets give",
    "texts": "the texts that evaluation.texts give",
    "templates": "the chat templates",
    "tokenizer": "the tokenizer",
    "scores": "the scores in data.scores",
    "versions": "the versions of the libraries",
    "student": "the model files of the student",
    "teacher": "the model files of the teacher",
    "reference": "the model files of the reference",
    "vocabulary": "the vocabulary and its stop ids",
    "rewards": "what the rewards read",
}
"""what is compared, by the name that `--accept` takes"""

LIBRARIES = ("tutelage", "torch", "transformers", "tokenizers", "peft", "math-verify", "latex2sympy2-extended", "sympy")


@dataclass
class Inputs:
    """What a run reads, compared piece by piece while it is put together.

    Fields:
      runtime: whose processes must read the same.
      before: what was read when the run began; None = it begins now, or that was not kept.
      accept: names of `INPUTS` that may have changed.
      now: what is read now.
      accepted: the changes that were accepted, a line each.
    """

    runtime: LocalRuntime
    before: Mapping[str, Any] | None = None
    accept: Sequence[str] = ()
    now: dict[str, Any] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_accepted(self.accept)

    def add(self, part: Mapping[str, Any]) -> None:
        """Compare some more of what the run reads.

        Raises:
          ConfigurationError: it is not the same in all processes, or not what it was when the run began.
        """
        for name, value in part.items():
            self.runtime.check_equal(INPUTS[name], value)
        self.now |= part
        before, refused = self.before or {}, dict[str, str]()
        for name in sorted(part.keys() & before.keys()):
            lines = input_differences(name, part[name], before[name])
            if lines and name in self.accept:
                self.accepted += lines
            elif lines:
                refused[name] = f"{INPUTS[name]} ({'; '.join(lines)})"
        if refused:
            insist = " ".join(f"--accept {name}" for name in refused)
            raise ConfigurationError(
                f"--resume: changed since it began: {', '.join(refused.values())}; a resumed run must be the run "
                "that was started. Undo the change, or start anew in another folder. To go on all the "
                f"same: --resume {insist}"
            )

    def to_file(self, recorded: Mapping[str, Any] | None, step: int) -> dict[str, Any]:
        """What `fingerprints.json` is to hold: `recorded` is what it holds, `step` where the run stands."""
        inputs = dict(self.now)
        if self.before is not None and "evaluation" in inputs:  # a set that is left out now may come back
            inputs["evaluation"] = {**self.before.get("evaluation", {}), **inputs["evaluation"]}
        accepted = list((recorded or {}).get("accepted", []))
        if self.accepted:
            accepted.append({"step": step, "changes": sorted(self.accepted)})
        started_in = (recorded or {}).get("started_in", str(Path.cwd()))
        return {"started_in": started_in, "inputs": inputs, "accepted": accepted}


def check_accepted(names: Sequence[str]) -> None:
    """Refuse names of inputs that may differ and are not among `INPUTS`.

    Raises:
      ConfigurationError: with the names that there are.
    """
    unknown = sorted(set(names) - INPUTS.keys())
    if unknown:
        raise ConfigurationError(f"--accept names {unknown[0]!r}; expected one of {', '.join(INPUTS)}.")


def version_inputs() -> dict[str, Any]:
    """Versions of what numbers depend on."""
    return {"versions": library_versions()}


def tokenizer_inputs(tokenizers: Tokenizers) -> dict[str, Any]:
    """Digests of the student's tokenizer, which is everyone's, and of the chat templates."""
    read = {"student": tokenizers.student, "teacher": tokenizers.teacher, **tokenizers.routes}
    return {
        "tokenizer": tokenizer_fingerprint(tokenizers.student),
        "templates": {name: _of_json(tokenizer.chat_template) for name, tokenizer in read.items()},
    }


def prompt_inputs(prompts: Prompts) -> dict[str, Any]:
    """Digests of the training prompts and their answers."""
    return {"prompts": _of_prompts(prompts.prompts), "answers": _of_texts(prompts.answers)}


def evaluation_inputs(sets: Sequence[EvaluationSet]) -> dict[str, Any]:
    """Digests of the problems that are evaluated on."""
    found = {each.name: {"problems": _of_prompts(each.prompts), "answers": _of_texts(each.answers)} for each in sets}
    return {"evaluation": found}


def score_inputs(config: RunConfig) -> dict[str, Any]:
    """A digest of the recorded scores, if the run names some."""
    return {} if config.data.scores is None else {"scores": ScoreCache(Path(config.data.scores)).fingerprint}


def text_inputs(sets: Sequence[TextSet]) -> dict[str, Any]:
    """Digests of the texts whose probability is looked at, if there are any, by the names of their sets."""
    found = {
        texts.name: _of_parts(
            array("q", tokens).tobytes()
            for each in texts.rollouts
            for tokens in (each.prompt_tokens, each.response_tokens)
        )
        for texts in sets
    }
    return {"texts": found} if found else {}


class ModelHashes:
    """Digests of the model files, computed by a thread while the models are loaded from the same files.

    Args:
      with_teacher: False = no teacher's weights are read.
    """

    def __init__(self, config: RunConfig, *, with_teacher: bool) -> None:
        self._models = list(models_read(config, with_teacher))
        self._found: dict[str, str] = {}
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._hash_files, daemon=True)
        self._thread.start()

    def inputs(self, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """The digests, once they are there, and that of the shared vocabulary, if it is given.

        Raises:
          ModelError: a file cannot be read.
        """
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        found = dict[str, Any]()
        if vocabulary is not None:
            found |= vocabulary_inputs(vocabulary)
        # Those of hub ids are taken now, which costs nothing.
        return found | weights_by_role(
            {key: self._found.get(key) or weights_fingerprint(model.source) for key, model in self._models}
        )

    def _hash_files(self) -> None:
        try:
            for key, model in self._models:
                if Path(model.path).is_dir():
                    self._found[key] = weights_fingerprint(model.source)
        except Exception as problem:  # raised by `inputs`
            self._problem = problem


def vocabulary_inputs(vocabulary: Vocabulary) -> dict[str, Any]:
    """Size and stop ids of what the models share."""
    return {"vocabulary": {"size": vocabulary.size, "stop_ids": sorted(vocabulary.stop_ids)}}


def weights_by_role(weights: Mapping[str, str]) -> dict[str, Any]:
    """Digests by key in the run file, such as teacher.routes.code, as they are kept: by role, and by part in it."""
    found: dict[str, Any] = {}
    for key, digest in weights.items():
        role, _, part = key.partition(".")
        found.setdefault(role, {})[part or "weights"] = digest
    return found


def library_versions() -> dict[str, str]:
    """Versions of what numbers depend on; those that are not installed are left out."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def input_differences(name: str, now: Any, before: Any) -> list[str]:
    """How one input differs; of evaluation sets those on both sides are compared, as a run may gain or lose some."""
    if name == "evaluation":
        before = {**now, **{key: value for key, value in before.items() if key in now}}
    return differences({name: now}, {name: before})


def differences(now: Mapping[str, Any], before: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs in two nested tables, a line each, with its dotted name."""
    found = []
    for name in sorted(now.keys() | before.keys()):
        mine, theirs = now.get(name), before.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            found += differences(mine, theirs, f"{prefix}{name}.")
        elif mine != theirs:
            shown = _excerpt(mine), _excerpt(theirs)
            values = "differs" if shown[0] == shown[1] else f"is {shown[0]}, was {shown[1]}"
            found.append(f"{prefix}{name} {values}")
    return found


def _excerpt(value: Any) -> str:
    """A value in short; a digest by its beginning."""
    if isinstance(value, str):
        value = re.sub(r"([0-9a-f]{12})[0-9a-f]{8,}", r"\1...", value)
    return excerpt(value, 40)


def models_read(config: RunConfig, with_teacher: bool) -> Iterator[tuple[str, ModelConfig]]:
    """The models whose weights decide numbers; a served teacher has no weights here."""
    yield "student", config.student
    for key, model in (("teacher", config.teacher), *other_models(config)):
        if not key.startswith("teacher") or (with_teacher and not is_served(model)):
            yield key, model


def _of_prompts(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How many, and a digest of what is read of each."""

    def parts() -> Iterator[bytes]:
        for prompt in prompts:
            yield array("q", prompt.student_tokens).tobytes()
            yield b"same" if prompt.teacher_tokens is None else array("q", prompt.teacher_tokens).tobytes()
            yield (prompt.teacher_name or "").encode()

    return {"count": len(prompts), "sha256": _of_parts(parts())}


def _of_texts(texts: Sequence[str | None]) -> str:
    return _of_parts(b"none" if text is None else b"=" + text.encode("utf-8", "surrogatepass") for text in texts)


def _of_json(content: Any) -> str:
    return _of_parts([json.dumps(content, sort_keys=True, default=str).encode()])


def _of_parts(parts: Iterable[bytes]) -> str:
    """SHA-256 of parts of any length, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
