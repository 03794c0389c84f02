"""A run, part by part: each part is made once, when it is first asked for, and one that is refused raises every time.

Train, doctor, probes, generate, score and compare take the parts of a run from here, so the settings that a part is
made of, and the order of loading, stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

from tutelage.config.clock import template_clock, with_asked_date
from tutelage.config.consistency import check_consistency
from tutelage.config.evaluation import build_evaluation_sets, evaluation_plan
from tutelage.config.fingerprints import (
    ModelHashes,
    evaluation_inputs,
    prompt_inputs,
    score_inputs,
    text_inputs,
    tokenizer_inputs,
    version_inputs,
)
from tutelage.config.models import (
    LoadStart,
    load_meta_models,
    load_reference,
    load_student,
    load_teachers,
    reference_of,
    student_at_start,
)
from tutelage.config.prompts import Prompts, check_lengths, check_prompt_lengths, read_prompts
from tutelage.config.recipes import build_phases
from tutelage.config.rewards import RatingPlan, check_reward_gradients, check_reward_names, rating_plan
from tutelage.config.schema import RunConfig
from tutelage.config.scores import offline_answers, score_key
from tutelage.config.selecting import Selector
from tutelage.config.serving import limits_of, make_scorer, make_served_scorers
from tutelage.config.step_memory import StepMemory, free_bytes
from tutelage.config.texts import build_text_sets, check_text_lengths
from tutelage.config.tokenizers import Tokenizers, load_tokenizers
from tutelage.config.verification import (
    Decode,
    VerifyRollouts,
    decoder_of,
    make_comparer,
    make_verifier,
    response_texts,
)
from tutelage.evaluation import EvaluationSet, TextSet, selections_named
from tutelage.models import LanguageModel, ModelSet, Vocabulary, align, check_savable
from tutelage.policies import Policy
from tutelage.rewards import Rating
from tutelage.rollout import EditingEngine, Engine, Engines, OfflineEngine, PairedEngine, Scorer, ServedScorer
from tutelage.runtime import LocalRuntime
from tutelage.tasks import TemplateClock, check_verifier
from tutelage.training import UPDATES, BatchSource, EvaluationPlan, Learning, Phase, PromptOrder, phase_at

__all__ = ["RunAssembly"]

T = TypeVar("T")


@dataclass(frozen=True)
class RunAssembly:
    """The run that a configuration describes, in parts.

    Fields:
      config: as it was checked.
      shared_runtime: that of the processes which share the run; None = there is one process.
      checkpoint: whose weights the student gets; None = its own.
      asks_teacher: the teacher is loaded in any case, also if all its scores are recorded.
      learns: False = answers are drawn or read and nothing else, so there are no reference and no recorded answers.
      rates: answers are rated also where nothing is learned.
    """

    config: RunConfig
    shared_runtime: LocalRuntime | None = None
    checkpoint: str | None = None
    asks_teacher: bool = False
    learns: bool = True
    rates: bool = False

    @classmethod
    def for_sampling(cls, config: RunConfig, checkpoint: str | None = None, *, rates: bool = False) -> Self:
        """A run whose policies are looked at; nothing is learned."""
        return cls(config, checkpoint=checkpoint, asks_teacher=True, learns=False, rates=rates)

    # Settings ---------------------------------------------------------------------------------------------------------

    @cached_property
    def runtime(self) -> LocalRuntime:
        """Where it runs."""
        return self.shared_runtime or LocalRuntime(self.config.runtime.device)

    @cached_property
    def phases(self) -> list[Phase]:
        """The recipes, one after another."""
        return build_phases(self.config)

    def policy_at(self, step: int) -> Policy:
        """Who picks the tokens at a step of the run, with schedules resolved."""
        return phase_at(self.phases, step).recipe_at(step).policy

    @cached_property
    def needs_teacher(self) -> bool:
        """Whether a teacher is loaded or asked; otherwise nothing is asked of one, or all its scores are recorded."""
        is_asked = self.asks_teacher or self.config.evaluation.teacher_reads
        is_asked = is_asked or any(phase.recipe.asks_teacher for phase in self.phases)
        return is_asked and self.config.has_teacher

    @cached_property
    def needs_reference(self) -> bool:
        """Whether some phase compares with a third model."""
        return self.learns and any(phase.recipe.compares_with_reference for phase in self.phases)

    @cached_property
    def rating_plan(self) -> RatingPlan | None:
        """How answers are rated; None = they are not."""
        is_asked = self.learns or self.rates
        return rating_plan(self.config, self.runtime.device, self.clock) if is_asked else None

    @cached_property
    def rating_inputs(self) -> dict[str, Any]:
        """Digests of what the rewards read; each of them is refused here if it cannot work."""
        return {} if self.rating_plan is None else self.rating_plan.inputs()

    def check_settings(self) -> None:
        """Refuse what the run file alone shows to be impossible."""
        check_consistency(self.config, self.phases)
        check_reward_names(self.phases, self.rating_plan)
        check_reward_gradients(self.phases, self.rating_plan)
        if self.config.data.verifier:
            check_verifier(self.config.data.verifier)

    # Texts ------------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizers(self) -> Tokenizers:
        """Of all models; refused if they differ."""
        return load_tokenizers(self.config)

    @cached_property
    def clock(self) -> TemplateClock:
        """The date for chat templates that ask for it."""
        return self._from_first(lambda: template_clock(self.config.data))

    @property
    def dated_config(self) -> RunConfig:
        """The configuration with the date that chat templates asked for, if those of the texts made so far did."""
        return with_asked_date(self.config, self.clock)

    @cached_property
    def prompts(self) -> Prompts:
        """The training prompts as their models read them."""
        plan = self.rating_plan
        reads_answers = plan is not None and plan.reads_answers
        return read_prompts(self.config.data, self.tokenizers, self.clock, reads_answers=reads_answers)

    @cached_property
    def evaluation_sets(self) -> list[EvaluationSet]:
        """The problems that are evaluated on."""
        tokenizer = self.tokenizers.student
        return build_evaluation_sets(self.config.evaluation.sets, self.config.data, tokenizer, self.clock)

    @cached_property
    def text_sets(self) -> list[TextSet]:
        """The texts whose probability is looked at."""
        texts, tokenizer = self.config.evaluation.texts, self.tokenizers.student
        if not texts:  # then no model's files need be there yet
            return []
        return build_text_sets(texts, self.config.data, tokenizer, self.clock, self.vocabulary.stop_id)

    @cached_property
    def evaluation(self) -> EvaluationPlan:
        """What is evaluated, and when."""
        settings, sets = self.config.evaluation, self.evaluation_sets
        return evaluation_plan(settings, sets, self.config.evaluation_tokens, self.text_sets)

    @cached_property
    def decode(self) -> Decode:
        """Token ids to text."""
        return decoder_of(self.tokenizers.student)

    @cached_property
    def verify(self) -> VerifyRollouts | None:
        """Right or wrong; None = nothing is judged."""
        return make_verifier(self.config.data, self.tokenizers.student) if self.config.data.verifier else None

    @cached_property
    def offline_answers(self) -> OfflineEngine | None:
        """The scored answers of phases that learn from such; refused if they do not fit the run."""
        recipes, prompts = [phase.recipe for phase in self.phases], self.prompts.prompts
        return offline_answers(self.dated_config, recipes, prompts, self.score_key)

    def score_key(self) -> dict[str, Any]:
        """All that a teacher's scores of given tokens depend on, as JSON has it."""
        return score_key(self.dated_config, self.tokenizers, self._shared_by_models(with_reference=False))

    def check_lengths(self) -> None:
        """Refuse prompts and answers that do not fit together into the context of a model that reads them."""
        config = self.config
        check_prompt_lengths(config, self.prompts.prompts)
        for problems in self.evaluation_sets:
            tokens, key = config.evaluation_tokens, "evaluation.max_new_tokens"
            check_lengths(config.student, None, problems.prompts, tokens, key)
        check_text_lengths(config.student, self.text_sets)

    @property
    def input_parts(self) -> dict[tuple[str, ...], Callable[[], dict[str, Any]]]:
        """What takes the digests of all that is read before any weights are, by their names; see `fingerprints`."""
        return {
            ("versions",): version_inputs,
            ("tokenizer", "templates"): lambda: tokenizer_inputs(self.tokenizers),
            ("prompts", "answers"): lambda: prompt_inputs(self.prompts),
            ("evaluation",): lambda: evaluation_inputs(self.evaluation_sets),
            ("texts",): lambda: text_inputs(self.text_sets),
            ("scores",): lambda: score_inputs(self.config),
            ("rewards",): lambda: {"rewards": self.rating_inputs} if self.rating_inputs else {},
        }

    def data_inputs(self) -> dict[str, Any]:
        """All of these digests."""
        return {name: value for take in self.input_parts.values() for name, value in take().items()}

    def model_hashes(self) -> ModelHashes:
        """Begin to take digests of the models' files."""
        return ModelHashes(self.config, with_teacher=self.needs_teacher)

    def check_before_weights(self) -> None:
        """Refuse all that can be refused before weights are loaded: settings, files of models, texts, in this order."""
        self.check_settings()
        _ = self.rating_inputs, self.tokenizers, self.prompts, self.evaluation_sets, self.offline_answers
        self.check_lengths()

    # Models -----------------------------------------------------------------------------------------------------------

    @cached_property
    def meta_models(self) -> dict[str, LanguageModel]:
        """Every model without its weights, by its key in the run file; refused where files do not fit together."""
        return load_meta_models(self.config, self.tokenizers.by_key)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the models share."""
        return self._shared_by_models(with_reference=self.needs_reference)

    @cached_property
    def teachers(self) -> dict[str | None, LanguageModel]:
        """The teachers with their weights, by the name that prompts call them; none of them where none is needed."""
        _ = self.meta_models  # refused before weights are read, as in `models`
        if not self.needs_teacher:
            return {}
        if self.config.teacher.is_student:
            return {None: student_at_start(self.config.teacher, *self._student)}
        return load_teachers(self.config, self.tokenizers.by_key, self.runtime)

    @cached_property
    def _student(self) -> tuple[LanguageModel, LoadStart]:
        """The student with its weights, and how to get it as it was at the run's start."""
        _ = self.meta_models  # files that are wrong are refused before the weights of any model are read
        return load_student(self.config, self.tokenizers.student, self.runtime.device, self.checkpoint)

    def step_memory(self, num_processes: int = 1) -> StepMemory:
        """What a step of one of so many processes takes."""
        return StepMemory(
            self.config,
            self.meta_models,
            self.phases,
            self.prompts.prompts,
            self.vocabulary,
            self.runtime.device,
            self.needs_reference,
            num_processes,
            self.rating_plan,
        )

    @cached_property
    def micro_batch_tokens(self) -> int:
        """Most tokens in one forward and backward: as [runtime] says, else by what of the GPU is free when first asked.

        Of several processes, the one with the least memory decides.
        """
        if (named := self.config.runtime.micro_batch_tokens) is not None:
            return named
        all_free = self.runtime.gather([free_bytes(self.runtime.device)])
        return self.step_memory(len(all_free)).fitting_micro_batch(min(all_free))

    @cached_property
    def models(self) -> ModelSet:
        """The models with their weights. Gradients are as training has them, if anything is learned."""
        config, tokenizers, device = self.config, self.tokenizers.by_key, self.runtime.device
        student, load_start = self._student
        teachers = self.teachers
        reference = load_reference(config, tokenizers, device, student, load_start) if self.needs_reference else None
        # Of a teacher that is a server, or that is not read, too. A checkpoint may have other stop ids than the model.
        vocabulary = self._shared_by_models(with_reference=self.needs_reference, student=student)
        models = ModelSet(student, vocabulary, teachers, reference, config.reference.reads)
        if self.learns:
            self._from_first(lambda: check_savable(student, vocabulary))
            for model in models.frozen:
                model.module.requires_grad_(False)
            student.enable_grad()  # afterwards: a reference may share its backbone
        return models

    @cached_property
    def paired_engine(self) -> PairedEngine:
        """What samples from any policy with the models here."""
        rollout, models = self.config.rollout, self.models
        return PairedEngine(
            models.student,
            models.teachers,
            draft_length=rollout.draft_length,
            support_size=rollout.support_size,
            vocabulary=models.vocabulary,
            limits=limits_of(self.config),
        )

    @cached_property
    def engine(self) -> Engine:
        """What makes answers here: the models, after recorded answers, if some phase learns from these."""
        first: list[Engine] = []
        if self.learns and self.offline_answers is not None:
            first.append(self.offline_answers)
        if any(phase.recipe.policy.edits_answers for phase in self.phases):
            size, limits = self.config.rollout.support_size, limits_of(self.config)
            first.append(EditingEngine(self.models, self.paired_engine, size, limits))
        return Engines([*first, self.paired_engine]) if first else self.paired_engine

    @cached_property
    def scorer(self) -> Scorer:
        """What lets the teachers read finished answers."""
        return make_scorer(self.config, self.models, self.served_scorers)

    @cached_property
    def served_scorers(self) -> dict[str | None, ServedScorer]:
        """The teachers that are servers, by the name that prompts call them."""
        if not self.config.teacher.servers:
            return {}
        return make_served_scorers(self.config, self.phases, self.models.vocabulary, self.meta_models)

    @cached_property
    def source(self) -> BatchSource:
        """What batches are made from."""
        config, prompts = self.config, self.prompts
        return BatchSource(
            self.models,
            self.engine,
            self.scorer,
            prompts.prompts,
            prompts.answers,
            PromptOrder(len(prompts.prompts), config.rollout.prompts_per_step, config.data.shuffle, config.seed),
            config.rollout,
            self.verify,
            self.runtime,
            config.seed,
            self.rating,
        )

    @cached_property
    def rating(self) -> Rating | None:
        """What rates the answers of training; None = nothing does."""
        plan, problems = self.rating_plan, self.prompts.problems
        return None if plan is None else plan.opened(problems, response_texts(self.tokenizers.student))

    def selector(self, rule: str, key: str, step: int) -> Selector:
        """Who keeps one of several answers to a prompt, refused before any weights are loaded.

        Args:
          rule: its name in `evaluation.SELECTIONS`.
          key: what names it, for messages.
          step: of the run, for weights of rewards.
        Raises:
          ConfigurationError: the rule is unknown, or reads what is not known here.
        """
        data = self.config.data
        known = {
            "answers": bool(data.verifier),
            "correct": bool(data.verifier and data.answer_column),
            "rewards": self.rating_plan is not None,
        }
        rules = selections_named([rule], [need for need, is_known in known.items() if is_known], key)
        _ = self.rating_inputs
        return Selector(rules, make_comparer(data, self.tokenizers.student), self.rating, step)

    @cached_property
    def learning(self) -> Learning:
        """What is learned from them."""
        return Learning(
            self.phases,
            update=UPDATES[self.config.optimizer.name],
            reference=reference_of(self.config, self.models),
            micro_batch_tokens=self.micro_batch_tokens,
            loss_form=self.config.runtime.loss,
        )

    def _shared_by_models(self, *, with_reference: bool, student: LanguageModel | None = None) -> Vocabulary:
        """The vocabulary of all models; `student`: in place of the one without weights."""
        own, *others = (model for key, model in self.meta_models.items() if key != "reference" or with_reference)
        return align(student or own, *others)

    def _from_first(self, find: Callable[[], T]) -> T:
        """What the first process finds; without asking for the device, which may be wrong."""
        return find() if self.shared_runtime is None else self.shared_runtime.from_first(find)
