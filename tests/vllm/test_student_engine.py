"""The student in a real vLLM beside this process: same numbers, same weights, same distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.demo import make_problems, student_path
from tutelage.distributions import normalise
from tutelage.errors import ConfigurationError, ServerError
from tutelage.models import AdapterSettings, LanguageModel, ModelSet, load_language_model, load_tokenizer
from tutelage.policies import Policy, Student, Teacher, Temperature
from tutelage.rollout import Capacity, HostedEngine, HostedSettings, PairedEngine, Request
from tutelage.rollout.reading import response_hidden
from tutelage.rollout.samplers import LocalVLLM
from tutelage.types import Prompt, Rollout

# Rounding of float32 in other orders; measured 2e-6 on average and 1e-5 at most.
SETTINGS = HostedSettings(dtype="float32", memory_share=0.2, tolerance=1e-4, tolerance_max=1e-3)
ROUNDING = 1e-4


def load(path: Path) -> LanguageModel:
    return load_language_model(str(path), load_tokenizer(str(path)))


def engine_of(student: LanguageModel, teacher: LanguageModel | None = None) -> HostedEngine:
    sampler = LocalVLLM(SETTINGS, Capacity(max_tokens=256, max_rows=64, device="cpu"))
    return HostedEngine(ModelSet.of(student, teacher), sampler, SETTINGS, support_size=8)


def answers(engine: HostedEngine, policy: Policy, request: Request, *, at_step: int = 0) -> list[Rollout]:
    """Drawn from the weights of a step."""
    engine.sync(policy, at_step)
    return engine.answer(policy, request)


def close(engine: HostedEngine) -> None:
    if engine.sampler._engine is not None:  # type: ignore[attr-defined]
        engine.sampler._engine.llm_engine.engine_core.shutdown()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def engine() -> Iterator[HostedEngine]:
    """The packaged student in vLLM."""
    made = engine_of(load(student_path()))
    yield made
    close(made)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    tokenizer = load_tokenizer(str(student_path()))
    texts = [problem.problem for problem in make_problems(8, seed=5)]
    chats = [[{"role": "user", "content": text}] for text in texts]
    return [
        Prompt(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats
    ]


def gaps(rollouts: list[Rollout]) -> torch.Tensor:
    return torch.cat([(r.behaviour_logprobs - r.rescored_logprobs).abs() for r in rollouts])  # type: ignore[operator]


@pytest.mark.parametrize("policy", [Student(), Temperature(0.7)], ids=["student", "temperature"])
def test_log_probabilities_are_ours(engine: HostedEngine, prompts: list[Prompt], policy: Student | Temperature) -> None:
    rollouts = answers(engine, policy, Request(prompts, 60, 4, seed=1, step=3))
    found = gaps(rollouts)
    print(f"{policy}: {len(found)} tokens, mismatch mean {found.mean():.2e}, max {found.max():.2e} nats")
    assert found.max() < ROUNDING
    assert [(r.prompt_index, r.sample_index) for r in rollouts] == [(p, s) for p in range(8) for s in range(4)]
    assert any(r.finished for r in rollouts)
    assert all((r.response_tokens[-1] == engine.models.vocabulary.stop_id) == r.finished for r in rollouts)
    assert all(engine.models.vocabulary.stop_id not in r.response_tokens[:-1] for r in rollouts)
    assert all(len(r) <= 60 and (r.finished or len(r) == 60) for r in rollouts)


def test_the_records_are_those_of_the_paired_engine(engine: HostedEngine, prompts: list[Prompt]) -> None:
    """Entropies, supports and all the rest: read off the same tokens."""
    rollouts = answers(engine, Temperature(0.7), Request(prompts, 12, seed=2))
    paired = PairedEngine(engine.models.student, vocabulary=engine.models.vocabulary, support_size=8)
    named = {
        n for n, v in vars(paired.generate(Temperature(0.7), prompts[:1], max_new_tokens=3)[0]).items() if v is not None
    }
    assert {n for n, v in vars(rollouts[0]).items() if v is not None} == named | {"rescored_logprobs"}
    for r in rollouts:
        hidden = response_hidden(engine.models.student, [(r.prompt_tokens, r.response_tokens)])
        logprobs = normalise(engine.models.vocabulary.shared_logits(engine.models.student.logits(hidden))).detach()
        top = logprobs.topk(8, dim=-1)
        torch.testing.assert_close(r.student.support_logprobs_TK, top.values)
        picked = torch.tensor(r.response_tokens)
        torch.testing.assert_close(r.student_logprobs, logprobs.gather(1, picked[:, None])[:, 0])


def test_greedy_answers_are_those_of_the_paired_engine(engine: HostedEngine, prompts: list[Prompt]) -> None:
    paired = PairedEngine(engine.models.student, vocabulary=engine.models.vocabulary)
    ours = paired.generate(Temperature(0.0), prompts, max_new_tokens=40)
    theirs = answers(engine, Temperature(0.0), Request(prompts, 40))
    assert [r.response_tokens for r in theirs] == [r.response_tokens for r in ours]
    assert all(torch.equal(r.behaviour_logprobs, torch.zeros(len(r))) for r in theirs)


def test_seeds_belong_to_prompt_and_sample(engine: HostedEngine, prompts: list[Prompt]) -> None:
    def drawn(chosen: list[Prompt], step: int = 0) -> list[list[int]]:
        made = answers(engine, Student(), Request(chosen, 20, 2, seed=1, step=step))
        return [r.response_tokens for r in made]

    assert drawn(prompts[:4]) == drawn(prompts[:4])
    assert drawn(prompts[:4]) != drawn(prompts[:4], step=1)
    alone = drawn([Prompt(prompts[2].student_tokens, stream=2)])
    assert alone == drawn(prompts[:4])[4:6], "an answer does not depend on the others that are drawn with it"


def test_first_tokens_are_distributed_as_the_student_is(engine: HostedEngine, prompts: list[Prompt]) -> None:
    """Chi-square over the tokens expected 5 times or more, the rest as one; at temperature 1.5, to have many."""
    number = 2000
    request = Request(prompts[:1], 1, number, seed=7, records_statistics=False)
    rollouts = answers(engine, Temperature(1.5), request)
    hidden = response_hidden(engine.models.student, [(list(prompts[0].student_tokens), [0])])
    logits = engine.models.vocabulary.shared_logits(engine.models.student.logits(hidden))[0].detach().double()
    expected = number * (logits / 1.5).softmax(-1)
    observed = torch.zeros_like(expected)
    for token, count in Counter(r.response_tokens[0] for r in rollouts).items():
        observed[token] = count
    common = expected >= 5
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    observed = torch.cat([observed[common], observed[~common].sum()[None]])
    statistic, freedom = float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1
    # Wilson and Hilferty: the cube root of a chi-square over its mean is nearly normal.
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    print(f"chi-square {statistic:.1f} with {freedom} degrees of freedom, z = {z:.2f}")
    assert freedom >= 5 and z < 4


def test_an_update_reaches_vllm_before_the_next_answer(engine: HostedEngine, prompts: list[Prompt]) -> None:
    def drawn(step: int) -> list[Rollout]:
        return answers(engine, Student(), Request(prompts, 20, seed=3), at_step=step)

    before = drawn(0)
    weights = [parameter.detach().clone() for parameter in engine.models.student.module.parameters()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in engine.models.student.module.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    with pytest.raises(ServerError, match=r"differ from ours by .* nats on average .* vllm\.tolerance allows 0\.0001"):
        drawn(0)  # the engine is told that these are weights which it has handed over
    after = drawn(1)
    print(f"after an update: mismatch mean {gaps(after).mean():.2e}, max {gaps(after).max():.2e} nats")
    assert gaps(after).max() < ROUNDING
    assert [r.response_tokens for r in after] != [r.response_tokens for r in before]
    with torch.no_grad():
        for parameter, old in zip(engine.models.student.module.parameters(), weights, strict=True):
            parameter.copy_(old)
    assert [r.response_tokens for r in drawn(0)] == [r.response_tokens for r in before]


def test_what_is_not_the_student_alone_is_refused(engine: HostedEngine, prompts: list[Prompt]) -> None:
    with pytest.raises(ConfigurationError, match=r"the policy Teacher\(.*\) asks for more"):
        engine.answer(Teacher(), Request(prompts, 1))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_is_merged_on_its_way(prompts: list[Prompt], method: Any) -> None:
    """What vLLM draws from is the merged student, which is the adapter's up to rounding; also after an update."""
    path = str(student_path())
    student = load_language_model(path, load_tokenizer(path), trainable=AdapterSettings(method, 4, 8))
    engine = engine_of(student)
    try:
        drawn = []
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            for weight in student.trainable.parameters().values():
                weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
            rollouts = answers(engine, Student(), Request(prompts, 20, seed=3), at_step=seed)
            found = gaps(rollouts)
            print(f"{method}: {len(found)} tokens, mismatch mean {found.mean():.2e}, max {found.max():.2e} nats")
            assert found.max() < ROUNDING
            drawn.append([r.response_tokens for r in rollouts])
    finally:
        close(engine)
    assert drawn[0] != drawn[1]


def test_every_way_of_stopping_is_one_event_and_padding_is_never_drawn(tmp_path: Path) -> None:
    """A random pair with other stop ids and padded tables, so that all of them are drawn if they can be."""
    shape = {"head_dim": 32, "max_position_embeddings": 512}  # a head size that vLLM has a kernel for
    student = load(save_model(tmp_path / "s", make_tokenizer(), padded_size=264, stop_ids=256, seed=1, **shape))
    teacher = load(save_model(tmp_path / "t", make_tokenizer(), padded_size=264, stop_ids=[258, 256], seed=2, **shape))
    engine = engine_of(student, teacher)
    assert (
        len(engine.models.vocabulary.stop_ids) == 2 and student.padded_vocabulary_size > engine.models.vocabulary.size
    )
    try:
        request = Request([Prompt([3, 4, 5])], 200, 32, records_statistics=False)
        rollouts = answers(engine, Student(), request)
    finally:
        close(engine)
    found = gaps(rollouts)
    print(f"two stop ids and padding: {len(found)} tokens, mismatch max {found.max():.2e} nats")
    assert sum(r.finished for r in rollouts) >= 5
    assert found.max() < ROUNDING
    last = torch.stack([(r.behaviour_logprobs - r.rescored_logprobs)[-1] for r in rollouts if r.finished])  # type: ignore[operator]
    assert last.abs().max() < ROUNDING
