"""Any policy, such as TRB, as the rollout of a TRL trainer: TRL's loop, losses and files, answers of our paired engine.

`DistillationTrainer` has no hook for rollouts, so `PolicyRollout.attach` puts itself in the place of the trainer's one
method that makes answers; `GRPOTrainer` takes a `PolicyRollout` as its `rollout_func`. The student is the trainer's own
model, computed where it lies; what TRL samples with (temperature, top-p, vLLM, ...) would not be the policy's, and is
refused. TRL's hooks are private or marked as experimental, so one minor version of TRL is accepted and no other.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tutelage.errors import ConfigurationError
from tutelage.models import DTYPES, LanguageModel, check_servable
from tutelage.models.language_model import stop_ids_of
from tutelage.models.serving import not_training
from tutelage.policies import Policy, Student
from tutelage.rollout import DEFAULT_DRAFT_LENGTH, Limits, PairedEngine, Request
from tutelage.types import Prompt, Rollout

__all__ = ["VERSION", "PolicyRollout", "check_version"]

VERSION = "1.16"
INSTALL = f"pip install 'trl=={VERSION}.*'"

# What of a trainer changes how it samples, and the values at which nothing is changed.
SAMPLING: dict[str, tuple[Any, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0, None),
    "top_k": (0, None),
    "min_p": (0.0, None),
    "repetition_penalty": (1.0, None),
    "use_vllm": (False,),
}
AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}


def check_version() -> None:
    """Refuse an environment without TRL, or with another version of it than this bridge is tested with.

    Raises:
      ConfigurationError: says which version is there, which is needed, and how to install it.
    """
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigurationError(f"TRL is not installed; tutelage.integrations.trl needs it. {INSTALL}") from None
    if found.split(".")[:2] != VERSION.split("."):
        raise ConfigurationError(
            f"TRL {found} is installed; tutelage.integrations.trl is made for {VERSION}, and uses what TRL may change "
            f"in any release. {INSTALL}"
        )


@dataclass
class PolicyRollout:
    """Answers of a policy for a TRL trainer, each distributed exactly as the policy's product of next-token mu.

    One trainer each. A step's policy is `policy.at(trainer.state.global_step)`. Evaluations measure the student, so
    their answers are the student's. Draws are keyed by the seed, the step, and the prompt's place among those of the
    step: a resumed training draws what the uninterrupted one would have.

    Fields:
      policy: any that samples; its numbers may be schedules.
      teacher: a `transformers` causal language model on the student's device, with the student's tokenizer. None = the
        trainer's own teacher, or none where the policy asks no teacher.
      draft_length: see `PairedEngine`.
      seed: None = `args.seed` of the trainer.
      limits: how much is computed at once.
      last: the answers of the latest call, with what is known of every token (blend, KL to the student, ...).
    Raises:
      ConfigurationError: TRL is missing or of another version.
    """

    policy: Policy
    teacher: Any = None
    draft_length: int | str = DEFAULT_DRAFT_LENGTH
    seed: int | None = None
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    last: list[Rollout] = field(default_factory=list, init=False, repr=False)
    _trainer: Any = field(default=None, init=False, repr=False)
    _engine: Any = field(default=None, init=False, repr=False)
    _step: int = field(default=-1, init=False, repr=False)
    _num_drawn: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_version()

    def attach(self, trainer: Any) -> None:
        """Make this the rollout of a `DistillationTrainer`; everything else of the trainer stays as it is.

        Raises:
          ConfigurationError: another kind of trainer, one that makes its answers in its own way, or settings under
            which its answers could not be the policy's; see `SAMPLING`.
        """
        from trl import DistillationTrainer

        own = DistillationTrainer._generate_single_turn
        if getattr(type(trainer), "_generate_single_turn", None) is not own:
            raise ConfigurationError(
                f"attach got {type(trainer).__name__}; expected TRL's DistillationTrainer, or a subclass that makes "
                "answers as it does. A GRPOTrainer takes the rollout as its argument rollout_func."
            )
        # Its loss calls the backbone beside the forward that accelerate casts, so it has the weights' own precision.
        self._bind(trainer, getattr(trainer, "teacher_model", None), autocast=None)

        def generate(prompt_ids: Any, images: Any, fields: Any, has_tool_images: bool = False) -> list[list[int]]:
            check_text(images, fields)
            return [rollout.response_tokens for rollout in self._answers(prompt_ids)]

        trainer._generate_single_turn = generate

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """What `GRPOTrainer` asks of its `rollout_func`: an answer to each prompt, which stand there once for each.

        Returns:
          prompt_ids, completion_ids, and as logprobs log mu of every token under the policy that drew it. TRL reads
          these where it corrects for samples of vLLM, and not otherwise.
        """
        if self._trainer is not trainer:
            self._bind(trainer, None, AUTOCAST.get(str(trainer.accelerator.mixed_precision)))
        prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
        check_text(images, fields)
        rollouts = self._answers(prompt_ids)
        return {
            "prompt_ids": [list(ids) for ids in prompt_ids],
            "completion_ids": [rollout.response_tokens for rollout in rollouts],
            "logprobs": [rollout.behaviour_logprobs.tolist() for rollout in rollouts],
        }

    def _bind(self, trainer: Any, teacher: Any, autocast: str | None) -> None:
        """Check the trainer and make the engine over its models, in the precision of the trainer's loss."""
        if self._trainer is not None:
            raise ConfigurationError(
                "this rollout belongs to another trainer already. Make a new one for each trainer."
            )
        check_trainer(trainer)
        teacher = self.teacher if self.teacher is not None else teacher
        models = [
            None if model is None else _language_model(trainer, model, name, autocast)
            for model, name in ((trainer.model, "the trainer's model"), (teacher, "the teacher"))
        ]
        engine = PairedEngine(*models, draft_length=self.draft_length, limits=self.limits)
        refusal = engine.refusal(self.policy)
        if refusal is not None:
            raise ConfigurationError(refusal)
        self._trainer, self._engine = trainer, engine

    def _answers(self, prompt_ids: Sequence[Sequence[int]]) -> list[Rollout]:
        """One answer to each prompt, in their order."""
        trainer, step = self._trainer, int(self._trainer.state.global_step)
        if step != self._step:
            self._step, self._num_drawn = step, 0
        is_training = trainer.model.training
        policy = self.policy.at(step) if is_training else Student()
        # Processes hold other prompts of the same step; no two of them share a stream.
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        prompts = [
            Prompt(list(ids), stream=(self._num_drawn + place) * processes + rank)
            for place, ids in enumerate(prompt_ids)
        ]
        self._num_drawn += len(prompts)
        seed = int(trainer.args.seed) if self.seed is None else self.seed
        with _as_it_is_scored(trainer):
            self.last = self._engine.answer(
                policy, Request(prompts, trainer.max_completion_length, seed=seed, step=step, records_statistics=False)
            )
        for name in ("blend", "kl_to_student"):
            values = [value for rollout in self.last if (value := rollout.tokenwise(name)) is not None]
            if values and is_training:
                trainer._metrics["train"][f"policy/{name}"].append(float(torch.cat(values).double().mean()))
        return self.last


def check_trainer(trainer: Any) -> None:
    """Refuse settings of a trainer under which answers would not be the policy's, or its loss not at what was sampled.

    Raises:
      ConfigurationError: names the setting of TRL, and the value at which it works.
    """
    for name, allowed in SAMPLING.items():
        found = getattr(trainer, name, allowed[0])
        if found not in allowed:
            raise ConfigurationError(
                f"args.{name} of the trainer is {found!r}; the policy alone says how tokens are drawn. Leave it at "
                f"{allowed[0]!r}; policies such as Temperature change how the student samples."
            )
    if trainer.args.generation_kwargs:
        raise ConfigurationError(
            f"args.generation_kwargs of the trainer is {trainer.args.generation_kwargs!r}; nothing here is sampled by "
            "`generate`. Drop it."
        )
    if getattr(trainer, "tools", None) or getattr(trainer, "_is_vlm", False):
        raise ConfigurationError("the trainer has tools or a model of images; a policy answers texts in one turn.")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ConfigurationError(
            "the trainer shards its weights (DeepSpeed or FSDP); this bridge samples from whole ones. Train on one "
            "device or with DDP, or run `tutelage train`, which samples from FSDP2's shards."
        )


def check_text(images: Any, fields: Any) -> None:
    """Refuse prompts that are more than text."""
    if images is not None or fields:
        raise ConfigurationError(
            f"the prompts have more than text ({', '.join(fields or ['images'])}); a policy answers texts only."
        )


def _language_model(trainer: Any, model: Any, name: str, autocast: str | None) -> LanguageModel:
    """A model of the trainer as our engine sees it: the same module; `autocast`: type of its products, if another.

    Raises:
      UnsupportedArchitectureError: our caches cannot serve it.
    """
    module = trainer.accelerator.unwrap_model(model)
    if hasattr(module, "get_base_model"):  # PEFT's wrapper; its layers are in the model itself
        module = module.get_base_model()
    tokenizer = trainer._tokenizer
    # DoRA makes norms of its weights, which our own forward would have to know about to keep copies of them.
    has_norms = any("lora_magnitude" in key for key, _ in module.named_parameters())
    served = LanguageModel(module, tokenizer, stop_ids_of(module, tokenizer), name, fast_forward=not has_norms)
    with not_training(module), _class_forward(module):
        check_servable(served)  # in the weights' own precision; what autocast rounds would be taken for a fault
    served.autocast = None if autocast is None else DTYPES[autocast]
    return served


@contextmanager
def _as_it_is_scored(trainer: Any) -> Iterator[None]:
    """The trainer's model without dropout and gradient checkpoints, while answers are made."""
    model, settings = trainer.accelerator.unwrap_model(trainer.model), trainer.args.gradient_checkpointing_kwargs
    checkpoints = model.is_gradient_checkpointing
    if checkpoints:
        model.gradient_checkpointing_disable()
    try:
        with not_training(model):
            yield
    finally:
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)


@contextmanager
def _class_forward(module: Any) -> Iterator[None]:
    """The module without the forward that accelerate puts into its place where it computes in mixed precision."""
    patched = module.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if patched is not None:
            module.forward = patched
