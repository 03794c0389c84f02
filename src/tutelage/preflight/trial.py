"""What only the models themselves can show: is the scoring aligned, can the teacher solve it, do the two agree?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tutelage.config import RunAssembly
from tutelage.diagnostics import rollout_metrics
from tutelage.distributions import gather_logprobs
from tutelage.evaluation import Drawing, EvaluationResult, EvaluationSet, evaluate
from tutelage.losses.distributions import ReverseKL
from tutelage.models import LanguageModel, both_readings
from tutelage.policies import Policy, Student, Teacher
from tutelage.preflight.finding import Finding, Verdict
from tutelage.rollout import PairedEngine, Request, derive_seed
from tutelage.targets import TARGETS
from tutelage.training import Objective, Recipe
from tutelage.types import Batch, Prompt

__all__ = ["own_teacher", "overlap", "seed_of", "solving"]

NUM_PROMPTS, NUM_TOKENS = 2, 64  # of the student as its own teacher
MAX_TEXT, NUM_LAST = 32_768, 32  # of the longest text, and its tokens that are compared
NUM_LOOKED_AT, ANSWER_TOKENS = 8, 256  # prompts whose answers are read for the overlap, and the length of each
NUM_PROBLEMS, NUM_SAMPLES = 16, 4  # of pass@1
# Runs that succeeded began with 0.72 of the student's top K in the teacher's and rose above 0.91, with 0.97 to 0.99 of
# the mass there; runs that failed stayed low (arXiv 2604.13016, sections 2.3 and 3). The lines are ours. Both count,
# because where a teacher is sure, most of a top K is noise, and differs without harm.
LOW_OVERLAP, LOW_MASS = 0.5, 0.9
# Largest mean difference, in nats, that rounding explains between decoding and scoring the same tokens.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def seed_of(run: RunAssembly) -> int:
    """Of everything that is sampled for an examination; no training step draws from it."""
    return derive_seed(run.config.seed, "doctor")


def own_teacher(run: RunAssembly) -> Finding:
    """The student as its own teacher: the loss is 0 and both sides give every token the same log-probability.

    A scoring that is off by one token, or that reads another prompt, shows here and nowhere else. Some things begin
    later in a text than these answers reach (a sliding window, rotary factors of long texts). So every model also reads
    the longest text that the run can reach, through the cache and whole: two forwards each, cheap beside the checks to
    come.
    """
    models, config = run.models, run.config
    student = models.student
    size = config.rollout.support_size
    engine = PairedEngine(student, student, vocabulary=models.vocabulary, support_size=size)
    asked = [Prompt(prompt.student_tokens) for prompt in run.prompts.prompts[:NUM_PROMPTS]]
    tokens = min(NUM_TOKENS, config.rollout.max_new_tokens)
    rollouts = engine.score(engine.generate(Student(), asked, max_new_tokens=tokens, seed=seed_of(run)))
    objective = Objective(
        engine.models,
        Recipe(Student(), TARGETS["teacher"](), (ReverseKL(top_k=size),)),
        run.micro_batch_tokens,
    )
    batch = objective.backward(Batch(rollouts))
    student.module.zero_grad(set_to_none=True)
    numbers = rollout_metrics(rollouts)
    gap = max(abs(numbers["student_logprob"] - numbers["teacher_logprob"]), batch.logprob_mismatch)
    text = (
        f"the student learning from itself on {batch.num_tokens} tokens: loss {batch.loss:.1e}, log-probabilities "
        f"{gap:.1e} nats apart"
    )
    if not max(abs(batch.loss), gap) <= TOLERANCES[student.autocast or student.module.dtype]:
        return Finding(
            Verdict.error,
            f"{text}; both should be 0 up to rounding",
            "Decoding and scoring disagree (shifted by a token, another prompt, dropout): compare with a plain forward "
            'of transformers, and set `attention = "eager"` for the student.',
        )
    length = min(_longest_text(run), MAX_TEXT)
    gaps = []
    for model in [student, *models.teachers.values()]:
        gaps.append(_reading_gap(model, asked[0].student_tokens, min(length, model.context_length or length)))
        if not gaps[-1] <= max(TOLERANCES[member.autocast or member.module.dtype] for member in model.members):
            return Finding(
                Verdict.error,
                f"{text}; but at the run's longest text, {length} tokens, the log-probabilities of {model.name} while "
                f"it writes and afterwards are {gaps[-1]:.1e} nats apart",
                "Lower rollout.max_new_tokens until both agree, and please report the model.",
            )
    return Finding(Verdict.ok, f"{text}, at most {max(gaps):.1e} at {length} tokens")


def _longest_text(run: RunAssembly) -> int:
    """Tokens of the longest prompt and answer that a model of the run may have to read."""
    config, prompts = run.config, run.prompts.prompts
    asked = max(prompt.longest for prompt in prompts)
    sets = [len(p.student_tokens) for problems in run.evaluation_sets for p in problems.prompts]
    evaluated = max(sets, default=0) + config.evaluation_tokens
    return max(asked + config.rollout.max_new_tokens, evaluated if sets else 0)


def _reading_gap(model: LanguageModel, tokens: Sequence[int], length: int) -> float:
    """Mean difference of the log-probabilities of a text's last tokens, read through the cache and whole."""
    text = (list(tokens) * (1 + length // len(tokens)))[:length]
    num_last = min(NUM_LAST, length - 1)
    next_T = torch.tensor(text[length - num_last + 1 :], device=model.device)
    cached_T, whole_T = (gather_logprobs(read_TV[:-1], next_T) for read_TV in both_readings(model, text, num_last))
    is_hidden_T = (cached_T == whole_T) & cached_T.isinf()  # a stop id whose mass is at another one
    return float((cached_T - whole_T).abs().masked_fill(is_hidden_T, 0).mean())


def overlap(run: RunAssembly) -> Finding:
    """How much the student's and the teacher's most probable tokens have in common before the first step."""
    num_tokens = min(ANSWER_TOKENS, run.config.rollout.max_new_tokens)
    request = Request(run.prompts.prompts[:NUM_LOOKED_AT], num_tokens, seed=seed_of(run))
    rollouts = run.scorer.score(run.engine.answer(Student(), request))
    numbers = rollout_metrics(rollouts)
    share, kept = numbers["support_overlap"], numbers["support_mass_teacher"]
    size, num_tokens = run.config.rollout.support_size, sum(map(len, rollouts))
    text = (
        f"{100 * share:.0f}% of the student's top {size} are in the teacher's, which has {100 * kept:.0f}% of its mass "
        f"there ({num_tokens} tokens)"
    )
    if share < LOW_OVERLAP and kept < LOW_MASS:
        return Finding(
            Verdict.warning,
            f"{text}; low overlap at the start predicts failure",
            "Choose a teacher of the student's own family and kind (base or chat), check both prompts above, or begin "
            "with fine-tuning on the teacher's answers ([[phase]], docs/concepts/warm-ups.md).",
        )
    return Finding(Verdict.ok, text)


def solving(run: RunAssembly) -> Finding:
    """pass@1 of teacher and student on the same problems, each from its own prompt."""
    prompts, answers = run.prompts.answered(NUM_PROBLEMS)
    if not run.config.data.verifier or not answers:
        return Finding(Verdict.skipped, "the prompts have no answers, or data.verifier is empty: nothing is judged")
    teacher = _judged(run, Teacher(), prompts, answers, "teacher")
    student = _judged(run, Student(), prompts, answers, "student")
    text = f"on {len(prompts)} problems: teacher {_shown(teacher)}, student {_shown(student)}"
    if teacher.truncation_rate > 0.5:
        return Finding(
            Verdict.error if not teacher.pass_at_1 else Verdict.warning,
            f"{text}; {100 * teacher.truncation_rate:.0f}% of the teacher's answers are cut at "
            f"{teacher.max_new_tokens} tokens",
            "Raise rollout.max_new_tokens, or check the stop ids and the teacher's prompt above.",
        )
    if not teacher.pass_at_1:
        return Finding(
            Verdict.error,
            f"{text}; a teacher that cannot solve the problems cannot teach them",
            "Check data.answer_column, data.verifier and the teacher's prompt above; otherwise choose another teacher "
            "or easier problems.",
        )
    if teacher.pass_at_1 <= student.pass_at_1:
        return Finding(
            Verdict.warning,
            f"{text}; the teacher is no better than the student",
            "Choose a stronger teacher, or problems that it solves and the student does not.",
        )
    return Finding(Verdict.ok, text)


def _judged(run: RunAssembly, policy: Policy, prompts: list[Prompt], answers: list[str], name: str) -> EvaluationResult:
    assert run.verify is not None  # else there is nothing to solve
    problems = EvaluationSet(f"doctor-{name}", prompts, list(map(str, range(len(prompts)))), answers)
    drawing = Drawing(NUM_SAMPLES, 1.0, run.config.rollout.max_new_tokens, seed_of(run))
    result, _ = evaluate(run.engine, problems, policy, drawing, verify=run.verify, decode=lambda tokens: "")
    return result


def _shown(result: EvaluationResult) -> str:
    low, high = result.pass_at_1_interval
    return f"{100 * result.pass_at_1:.0f}% (95% {100 * low:.0f} to {100 * high:.0f})"
