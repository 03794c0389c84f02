"""From a checked configuration to the parts of a run, cheapest refusals first.

The order is the point: paths and numbers, then prompts and tokenizers, and only then gigabytes of weights. Nothing is
written before everything has been built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.load import load_config, to_toml
from tutelage.config.parts import part_from
from tutelage.config.schema import DataConfig, EvaluationSetConfig, ModelConfig, RunConfig
from tutelage.divergences import DIVERGENCES
from tutelage.errors import CheckpointError, ConfigurationError, OutputExistsError
from tutelage.evaluation import EvaluationSet
from tutelage.models import (
    LanguageModel,
    align,
    check_distinct,
    check_same_tokenizer,
    load_language_model,
    load_tokenizer,
)
from tutelage.policies import POLICIES, Temperature
from tutelage.rollout import PairedEngine
from tutelage.runtime import LocalRuntime
from tutelage.targets import TARGETS
from tutelage.tasks import Verifier, check_verifier, load_problems, render_all
from tutelage.training import EvaluationPlan, PromptOrder, Recipe, Run, RunFolder, find_resumable
from tutelage.types import Prompt, Rollout

__all__ = ["build_engine", "build_evaluation_set", "build_recipe", "build_run", "make_verifier", "read_prompts"]

VerifyRollouts = Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]]


@dataclass(frozen=True)
class Prompts:
    """The training prompts as both models read them, with what is needed to judge answers to them."""

    prompts: Sequence[Prompt]
    ids: Sequence[str]
    answers: Sequence[str | None]


def build_run(config: RunConfig, *, resume: bool = False) -> Run:
    """Put a run together, or refuse it before any compute is spent.

    Args:
      resume: continue the run in the output folder from its newest whole checkpoint.
    Raises:
      OutputExistsError: the output folder exists and `resume` is False.
      CheckpointError: `resume`, and there is no checkpoint that can be used.
      ConfigurationError, DataError, ModelError: one clear message each.
    """
    folder = RunFolder(Path(config.output_folder))
    if folder.path.exists() and not resume:
        raise OutputExistsError(
            f"the output folder {folder.path} already exists, and a run never overwrites one. Choose another with "
            "--set output=FOLDER, or continue that run with --resume."
        )
    checkpoint, messages = _resumable(config, folder) if resume else (None, [])
    recipe = build_recipe(config)
    runtime = LocalRuntime(config.runtime.device)
    if config.data.verifier is not None:
        check_verifier(config.data.verifier)
    if config.evaluation.sets and config.data.verifier is None:
        raise ConfigurationError(
            "data.verifier is not set, but evaluation.sets asks for answers to be judged. Set data.verifier = 'math'."
        )
    if not recipe.divergence.needs_full_target and config.rollout.support_size < recipe.divergence.top_k:
        raise ConfigurationError(
            f"rollout.support_size is {config.rollout.support_size}, but the loss looks at divergence.top_k = "
            f"{recipe.divergence.top_k} tokens. Set rollout.support_size to at least that."
        )
    check_distinct(config.student.path, config.teacher.path, config.student.revision, config.teacher.revision)

    student_tokenizer, teacher_tokenizer = _tokenizers(config)
    prompts = read_prompts(config.data, student_tokenizer, teacher_tokenizer)
    sets = [build_evaluation_set(item, config.data, student_tokenizer) for item in config.evaluation.sets]
    _refuse_equal_names(sets)

    engine = build_engine(config, student_tokenizer, teacher_tokenizer, str(checkpoint) if checkpoint else None)
    _refuse_overlong(engine, prompts.prompts, config.rollout.max_new_tokens, "rollout.max_new_tokens")
    evaluation_tokens = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    for problems in sets:
        _refuse_overlong(engine, problems.prompts, evaluation_tokens, "evaluation.max_new_tokens")
    if checkpoint is None:
        folder.create(to_toml(config))
    return Run(
        recipe=recipe,
        engine=engine,
        runtime=runtime,
        prompts=prompts.prompts,
        answers=prompts.answers,
        prompt_order=PromptOrder(
            len(prompts.prompts), config.rollout.prompts_per_step, config.data.shuffle, config.seed
        ),
        rollout=config.rollout,
        optimizer=config.optimizer,
        checkpoint=config.checkpoint,
        evaluation=EvaluationPlan(
            sets=sets,
            policy=Temperature(config.evaluation.temperature).at(0),
            every=config.evaluation.every,
            num_samples=config.evaluation.num_samples,
            temperature=config.evaluation.temperature,
            max_new_tokens=evaluation_tokens,
        ),
        num_steps=config.steps,
        seed=config.seed,
        micro_batch_tokens=config.runtime.micro_batch_tokens,
        folder=folder,
        verify=None if config.data.verifier is None else make_verifier(config.data.verifier, engine.student),
        decode=decoder_of(engine.student),
        samples_per_log=config.logging.samples_per_log,
        steps_per_log=config.logging.steps_per_log,
        resume_from=checkpoint,
        messages=messages,
    )


def build_recipe(config: RunConfig) -> Recipe:
    """The method that a configuration names."""
    return Recipe(
        policy=part_from(config.policy, POLICIES, "policy"),
        target=part_from(config.target, TARGETS, "target"),
        divergence=part_from(config.divergence, DIVERGENCES, "divergence"),
    )


def build_engine(
    config: RunConfig, student_tokenizer: Any, teacher_tokenizer: Any, student_path: str | None = None
) -> PairedEngine:
    """Load both models and put them side by side; `student_path` replaces the student's weights (a checkpoint)."""
    device = LocalRuntime(config.runtime.device).device
    student = _load(config.student, student_tokenizer, device, student_path)
    teacher = _load(config.teacher, teacher_tokenizer, device)
    return PairedEngine(
        student,
        teacher,
        draft_length=config.rollout.draft_length,
        vocabulary=align(student, teacher),
        support_size=config.rollout.support_size,
        max_rows=config.rollout.max_rows,
        score_tokens=config.rollout.score_tokens,
    )


def read_prompts(data: DataConfig, student_tokenizer: Any, teacher_tokenizer: Any) -> Prompts:
    """Load and render the training prompts; the teacher reads each one through its own chat template."""
    answer_column = None if data.verifier is None else data.answer_column
    problems = load_problems(
        data.path, prompt_column=data.prompt_column, answer_column=answer_column, split=data.split, limit=data.limit
    )
    rendered = render_all(
        problems,
        student_tokenizer,
        teacher_tokenizer,
        max_prompt_tokens=data.max_prompt_tokens,
        system_prompt=data.system_prompt,
        teacher_system_prompt=data.teacher_system_prompt,
        use_chat_template=data.use_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
    )
    kept = rendered.problems
    return Prompts(rendered.prompts, [problem.id for problem in kept], [problem.answer for problem in kept])


def build_evaluation_set(item: EvaluationSetConfig, data: DataConfig, tokenizer: Any) -> EvaluationSet:
    """Load and render problems to be judged on, put to the student exactly as the training prompts are."""
    problems = load_problems(
        item.path,
        prompt_column=item.prompt_column,
        answer_column=item.answer_column,
        split=item.split,
        limit=item.limit,
    )
    rendered = render_all(
        problems,
        tokenizer,
        None,
        max_prompt_tokens=data.max_prompt_tokens,
        system_prompt=data.system_prompt,
        use_chat_template=data.use_chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
    )
    name = item.name or Path(item.path).stem
    answers = [problem.answer or "" for problem in rendered.problems]
    return EvaluationSet(name, rendered.prompts, [problem.id for problem in rendered.problems], answers)


def make_verifier(task: str, student: LanguageModel) -> VerifyRollouts:
    """Right or wrong for rollouts, from their text."""
    decode, verifier = decoder_of(student), Verifier(task)

    def verify(rollouts: Sequence[Rollout], answers: Sequence[str]) -> Sequence[bool]:
        responses = [decode(rollout.response_tokens) for rollout in rollouts]
        return verifier.verify_many(zip(responses, answers, strict=True))

    return verify


def decoder_of(student: LanguageModel) -> Callable[[Sequence[int]], str]:
    """Token ids to text, without special tokens."""

    def decode(tokens: Sequence[int]) -> str:
        return str(student.tokenizer.decode(list(tokens), skip_special_tokens=True))

    return decode


def _tokenizers(config: RunConfig) -> tuple[Any, Any]:
    loaded = [
        load_tokenizer(model.path, revision=model.revision, trust_remote_code=model.trust_remote_code)
        for model in (config.student, config.teacher)
    ]
    check_same_tokenizer(*loaded)
    return loaded[0], loaded[1]


def _load(model: ModelConfig, tokenizer: Any, device: str, path: str | None = None) -> LanguageModel:
    return load_language_model(
        path or model.path,
        tokenizer,
        dtype=model.dtype,
        device=device,
        revision=None if path else model.revision,
        trust_remote_code=model.trust_remote_code,
        allow_pickle=model.allow_pickle,
        attention=model.attention,
    )


def _resumable(config: RunConfig, folder: RunFolder) -> tuple[Path, list[str]]:
    """The checkpoint to continue from, and what to tell the user about damaged ones."""
    saved = folder.path / "config.toml"
    if not saved.is_file():
        raise CheckpointError(
            f"--resume: {folder.path} holds no run (no config.toml). Start it without --resume, or set output=FOLDER."
        )
    before, now = load_config(saved).model_dump(), config.model_dump()
    # More steps and more frequent looks are a continuation; anything else would be another run.
    free = {"steps", "evaluation", "checkpoint", "logging", "output"}
    changed = sorted(key for key in now if key not in free and now[key] != before[key])
    if changed:
        raise ConfigurationError(
            f"--resume: {', '.join(changed)} differ from {saved}; a resumed run must be the run that was started. "
            "Undo the change, or start a new run with --set output=FOLDER."
        )
    path, complaints = find_resumable(folder.checkpoints)
    if path is None:
        found = "; ".join(complaints) or "none was written yet"
        raise CheckpointError(
            f"--resume: no usable checkpoint in {folder.checkpoints} ({found}). "
            "Start a new run with --set output=FOLDER."
        )
    return path, [f"{complaint}; falling back to {path.name}" for complaint in complaints]


def _refuse_overlong(engine: PairedEngine, prompts: Sequence[Prompt], max_new_tokens: int, key: str) -> None:
    for model, lengths in (
        (engine.student, [len(prompt.student_tokens) for prompt in prompts]),
        (engine.teacher, [len(prompt.teacher_tokens or prompt.student_tokens) for prompt in prompts]),
    ):
        limit = None if model is None else model.context_length
        if model is not None and limit is not None and max(lengths) + max_new_tokens > limit:
            raise ConfigurationError(
                f"{key} is {max_new_tokens}, and the longest prompt has {max(lengths)} tokens; {model.name} holds "
                f"{limit} in all. Set {key} to at most {limit - max(lengths)}, or lower data.max_prompt_tokens."
            )


def _refuse_equal_names(sets: Sequence[EvaluationSet]) -> None:
    names = [problems.name for problems in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two evaluation sets are called {name!r}. Give each a `name` of its own.")
