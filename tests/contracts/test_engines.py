"""What every engine must keep, also one that the library does not know, and one whose sampler it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.fake_server import logprobs_of
from tests.support.tiny_models import make_model
from tests.support.tiny_run import write_run_file
from tutelage.config import build_run, load_config
from tutelage.distributions import sample
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel, ModelSet
from tutelage.policies import Offline, Policy, Student, Teacher, Temperature, TrustRegion
from tutelage.rollout import (
    SAMPLERS,
    Engine,
    Engines,
    HostedEngine,
    HostedSettings,
    OfflineEngine,
    PairedEngine,
    Request,
    ScoreCache,
    TopScorer,
    uniforms,
)
from tutelage.rollout.samplers import SampledAnswer, SamplingParams
from tutelage.training import Observer, train
from tutelage.types import Prompt, Reading, Rollout

PROMPTS = [Prompt([1, 2, 3], stream=0), Prompt([4], teacher_tokens=[9, 4], stream=1), Prompt([5, 6], stream=2)]
SETTINGS = HostedSettings(tolerance=1e-6, tolerance_max=1e-5)


@dataclass
class OurSampler:
    """A sampler that the library does not know: a copy of the student that reads everything anew for every token."""

    folders: list[Path] = field(default_factory=list)

    def check(self, prompt: Sequence[int], num_tokens: int) -> None:
        """There is no server to ask."""

    def load(self, folder: Path) -> None:
        self.folders.append(folder)
        self.model = LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(folder))

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[SampledAnswer]:
        return [self._answer(prompt, seed, params) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _answer(self, prompt: Sequence[int], seed: int, params: SamplingParams) -> SampledAnswer:
        generator, tokens, logprobs, last = torch.Generator().manual_seed(seed), list(prompt), [], torch.zeros(0)
        while len(tokens) < len(prompt) + params.max_new_tokens and tokens[-1] not in params.stop_ids:
            last = logprobs_of(self.model, [*tokens, 0])[-1].clone()
            last[[i for i in params.forbidden_ids if i < len(last)]] = -torch.inf
            last = (last / (params.temperature or 1e-9)).log_softmax(-1)
            tokens.append(int(last.exp().multinomial(1, generator=generator)))
            logprobs.append(float(last[tokens[-1]]))
        stops = {i: float(last[i]) for i in params.stop_ids}
        return SampledAnswer(tokens[len(prompt) :], logprobs, stops)


@dataclass(frozen=True)
class Parrot:
    """An engine that the library does not know: it draws every token from those of the prompt."""

    def refusal(self, policy: Policy) -> str | None:
        return None if isinstance(policy, Student) else f"a parrot does not know {policy}. Use policy = 'student'."

    def sync(self, policy: Policy, step: int) -> None:
        pass

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        refusal = self.refusal(policy)
        if refusal is not None:
            raise ConfigurationError(refusal)
        made, places = [], torch.arange(request.max_new_tokens)
        for i, prompt in enumerate(request.prompts):
            words = torch.tensor(prompt.student_tokens)
            logprobs = torch.full((len(places), len(words)), 1 / len(words)).log()
            stream = torch.tensor([i if prompt.stream is None else prompt.stream])
            for number in range(request.num_samples):
                drawn, _ = uniforms(request.seed, request.step, stream, torch.tensor([number]), places)
                tokens = words[sample(logprobs, drawn[0])].tolist()
                known = Reading(torch.zeros(len(tokens)))
                rollout = Rollout(list(prompt.student_tokens), tokens, known.logprobs_T, known)
                made.append(replace(rollout, prompt_index=i, sample_index=number))
        return made


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return ModelSet.of(
        make_model("qwen3", vocab_size=20, stop_ids=7, seed=1),
        make_model("qwen3", vocab_size=20, stop_ids=[8, 7], seed=2),
    )


@pytest.fixture(scope="module")
def engines(models: ModelSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Engine, Policy]]:
    """Every engine with a policy that it serves, and that depends on the random numbers of a step."""
    paired = PairedEngine(models.student, models.teachers, vocabulary=models.vocabulary, support_size=4)
    cache = ScoreCache(tmp_path_factory.mktemp("scores"))
    answers = paired.answer(Student(), Request(PROMPTS, 8, 6))
    cache.create({"num_answers": len(answers), "answers_per_shard": 5})
    scored = TopScorer(models.teachers, models.vocabulary, 1000, top_k=4).score(answers)
    for shard in range(cache.num_shards):
        cache.write(shard, scored[5 * shard : 5 * shard + 5])
    offline = OfflineEngine.of(cache)
    return {
        "paired": (paired, TrustRegion(0.2)),
        "paired, student": (paired, Student()),
        "hosted": (HostedEngine(models, OurSampler(), SETTINGS, support_size=4), Student()),
        "offline": (offline, Offline()),
        "several": (Engines([offline, paired]), Temperature(1.2)),
        "one of ours": (Parrot(), Student()),
    }


NAMES = ["paired", "paired, student", "hosted", "offline", "several", "one of ours"]


@pytest.fixture(params=NAMES)
def served(request: pytest.FixtureRequest, engines: dict[str, tuple[Engine, Policy]]) -> tuple[Engine, Policy]:
    engine, policy = engines[request.param]
    assert engine.refusal(policy) is None
    engine.sync(policy, 0)
    return engine, policy


def tokens_of(rollouts: Sequence[Rollout]) -> list[list[int]]:
    return [rollout.response_tokens for rollout in rollouts]


def test_answers_come_in_the_order_of_prompts_and_samples(served: tuple[Engine, Policy]) -> None:
    engine, policy = served
    made = engine.answer(policy, Request(PROMPTS, 8, 3))
    assert [(r.prompt_index, r.sample_index) for r in made] == [(i, n) for i in range(3) for n in range(3)]
    for rollout in made:
        assert rollout.prompt_tokens == list(PROMPTS[rollout.prompt_index].student_tokens)
        assert 1 <= len(rollout) <= 8 and len(rollout.behaviour_logprobs) == len(rollout)
        assert rollout.finished == (rollout.response_tokens[-1] == 7)
    assert engine.answer(policy, Request([], 8)) == []


def test_an_answer_depends_on_seed_step_prompt_and_sample_alone(served: tuple[Engine, Policy]) -> None:
    engine, policy = served
    request = Request(PROMPTS, 8, 3, seed=5, step=2)
    made = tokens_of(engine.answer(policy, request))
    assert tokens_of(engine.answer(policy, request)) == made
    alone = engine.answer(policy, replace(request, prompts=[PROMPTS[2]]))
    assert tokens_of(alone) == made[6:] and {rollout.prompt_index for rollout in alone} == {0}
    unnamed = [replace(prompt, stream=None) for prompt in PROMPTS]  # a prompt's stream is then its place
    assert tokens_of(engine.answer(policy, replace(request, prompts=unnamed))) == made
    assert tokens_of(engine.answer(policy, replace(request, seed=6))) != made
    assert tokens_of(engine.answer(policy, replace(request, step=3))) != made


def test_a_number_below_1_is_refused() -> None:
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(ConfigurationError, match="both must be at least 1"):
            Request(PROMPTS, *numbers)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_served_is_refused_in_words(engines: dict[str, tuple[Engine, Policy]], name: str) -> None:
    engine, _ = engines[name]
    policies: list[Policy] = [Student(), Teacher(), Temperature(0.5), TrustRegion(0.1), Offline()]
    refused = [policy for policy in policies if engine.refusal(policy) is not None]
    assert len(refused) < len(policies)
    for policy in refused:
        words = engine.refusal(policy)
        assert words is not None and str(policy) in words and words.endswith(".")
        assert any(hint in words for hint in ("Use ", "Give ", "Train ")), "says what to do"
        with pytest.raises(ConfigurationError) as problem:
            engine.answer(policy, Request(PROMPTS, 2))
        assert str(problem.value) == words


def test_the_first_engine_that_can_serve_a_policy_does(models: ModelSet) -> None:
    alone, parrot = PairedEngine(models.student), Parrot()
    both = Engines([parrot, alone])
    request = Request(PROMPTS, 4)
    assert tokens_of(both.answer(Student(), request)) == tokens_of(parrot.answer(Student(), request))
    assert tokens_of(both.answer(Temperature(0.5), request)) == tokens_of(alone.answer(Temperature(0.5), request))
    assert both.refusal(Teacher()) == alone.refusal(Teacher()), "where none serves it, the last one's words"
    assert Engines([alone, parrot]).refusal(Teacher()) == parrot.refusal(Teacher())
    with pytest.raises(ConfigurationError, match="this engine has only a student"):
        both.answer(Teacher(), request)


def test_a_sampler_gets_the_weights_of_a_step_once(models: ModelSet, tmp_path: Path) -> None:
    sampler = OurSampler()
    hosted = HostedEngine(models, sampler, replace(SETTINGS, weights_folder=str(tmp_path)))
    engine = Engines([hosted, PairedEngine(models.student, models.teachers, vocabulary=models.vocabulary)])
    engine.sync(TrustRegion(0.1), 0)  # the models here serve this policy
    assert sampler.folders == []
    for step, policy in ((0, Student()), (0, Temperature(0.5)), (1, Student()), (1, TrustRegion(0.1)), (1, Student())):
        engine.sync(policy, step)
    assert sampler.folders == [tmp_path, tmp_path]


# --- in a run ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """An engine that notes what it is asked for."""

    engine: Engine
    calls: list[tuple[str, int | None]] = field(default_factory=list)

    def refusal(self, policy: Policy) -> str | None:
        return self.engine.refusal(policy)

    def sync(self, policy: Policy, step: int) -> None:
        self.calls.append(("sync", step))
        self.engine.sync(policy, step)

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        self.calls.append(("train", request.step) if request.records_statistics else ("evaluate", None))
        return self.engine.answer(policy, request)


@pytest.mark.runs
def test_the_loop_syncs_once_before_it_asks(tmp_path: Path) -> None:
    run = build_run(load_config(write_run_file(tmp_path, steps=3)))
    watched = Watched(run.source.engine)
    run.source = replace(run.source, engine=watched)
    train(run, Observer())
    steps = [call for step in range(3) for call in (("sync", step), ("train", step))]
    assert watched.calls == [("sync", 0), ("evaluate", None), *steps, ("sync", 3), ("evaluate", None)]


@pytest.mark.runs
def test_a_new_sampler_is_a_line_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run file names it, and it draws where the policy has become the student alone."""
    made: list[OurSampler] = []

    def ours(settings: HostedSettings, capacity: object) -> OurSampler:
        made.append(OurSampler())
        return made[-1]

    monkeypatch.setitem(SAMPLERS, "ours", ours)
    path = write_run_file(tmp_path, steps=6)
    run = build_run(load_config(path, ["rollout.engine=ours", "evaluation.sets=[]", "vllm.tolerance=1e-4"]))
    found: dict[int, bool] = {}

    class Notes(Observer):
        def on_step(self, result: object) -> None:
            found[result.step] = "vllm_logprob_mismatch" in result.metrics  # type: ignore[attr-defined]

    train(run, Notes())
    assert found == {step: step >= 4 for step in range(6)}, "the trust region ends at step 4"
    assert len(made) == 1 and len(made[0].folders) == 2
