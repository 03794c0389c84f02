"""The length of a text changes nothing but its length: rotary factors that switch, windows, the end of a context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tests.support.long_models import LONG, SWITCH, longrope, phi3
from tests.support.tiny_models import make_model
from tutelage.errors import DataError, UnsupportedArchitectureError
from tutelage.models import ContextLength, LanguageModel, ModelSet, both_readings, check_servable
from tutelage.models.caches import CacheView
from tutelage.models.context import context_length_in
from tutelage.policies import Student, Teacher, TrustRegion
from tutelage.rollout import Limits, LocalScorer, PairedEngine, ReferenceScorer
from tutelage.types import Prompt


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def gap(model: LanguageModel, tokens: list[int], num_last: int = 4) -> float:
    cached_TV, whole_TV = both_readings(model, tokens, num_last)
    return float((cached_TV - whole_TV).abs().max())


# --- rotary factors ---------------------------------------------------------------------------------------------------


def test_a_model_is_one_model_up_to_the_switch() -> None:
    """What is written before the switch and read after it differs by nats, which is why texts end there."""
    model = LanguageModel(phi3(), name="phi")
    assert model.context_length == SWITCH and model.context_length.made_for == 512
    assert "short_factor to long_factor in its config.json" in model.context_length.remark
    assert gap(model, text(SWITCH)) < 1e-9
    assert gap(model, text(SWITCH + 1)) > 0.1
    check_servable(model)


def test_with_equal_factors_nothing_switches() -> None:
    """As the refusal says; it is also what vLLM computes where texts may be longer than the switch."""
    rope = longrope() | {"short_factor": LONG}
    model = LanguageModel(phi3(rope))
    assert model.context_length == 512 and model.context_length.remark == ""
    for length in (SWITCH - 1, SWITCH + 1, 60):
        assert gap(model, text(length)) < 1e-9
    switching = phi3()
    switching.load_state_dict(model.module.state_dict())
    tokens = torch.tensor([text(60)])
    torch.testing.assert_close(model.module(input_ids=tokens).logits, switching(input_ids=tokens).logits)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_long_text_changes_no_other(kind: str) -> None:
    """Neither beside it in a batch nor after it, be it as long as can be."""
    if kind == "longrope":
        model = LanguageModel(phi3())
    else:
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
        model = LanguageModel(make_model("llama", rope_parameters=rope, max_position_embeddings=SWITCH))
    assert model.context_length == SWITCH and not model.uses_fast_forward
    texts = [text(SWITCH, seed=1), text(7, seed=2), text(15, seed=3)]
    alone = [model.hidden_packed([each]) for each in texts[1:]]
    together = model.hidden_packed(texts).split([SWITCH, 7, 15])
    after = [model.hidden_packed([each]) for each in texts[1:]]
    for found in (together[1:], after):
        for each, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-9)
    engine = PairedEngine(model, limits=Limits(max_rows=4))
    settings = {"max_new_tokens": SWITCH - 15, "seed": 3}
    beside = engine.generate(Student(), [text(15, seed=3), text(2)], num_samples=2, **settings)
    single = PairedEngine(model, limits=Limits(max_rows=1)).generate(Student(), [text(15, seed=3)], **settings)
    assert beside[0].response_tokens == single[0].response_tokens


def test_which_configurations_switch() -> None:
    def length(**settings: Any) -> int | None:
        config = transformers.PretrainedConfig()
        for name, value in settings.items():
            setattr(config, name, value)
        return context_length_in(config)

    assert length() is None
    assert length(max_seq_len=99) == 99
    assert length(max_position_embeddings=512, rope_parameters=longrope()) == SWITCH
    assert length(max_position_embeddings=16, rope_parameters=longrope()) == 16
    assert length(max_position_embeddings=512, rope_parameters=longrope([1.0] * 4)) == 512
    assert length(max_position_embeddings=512, rope_parameters={"full_attention": longrope()}) == SWITCH
    older = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
    assert length(max_position_embeddings=512, rope_scaling=older, original_max_position_embeddings=30) == 30
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert length(max_position_embeddings=512, rope_parameters=yarn) == 512


def test_positions_that_change_their_meaning_are_caught_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the configuration is not understood, as one of code that we do not know."""
    model = LanguageModel(phi3(), name="phi")
    monkeypatch.setattr("tutelage.models.language_model.context_length_in", lambda _: ContextLength(512, 512))
    with pytest.raises(UnsupportedArchitectureError, match="position 511 changes what the first ones predict"):
        check_servable(model)


# --- who reads, and how much ------------------------------------------------------------------------------------------


def small(length: int, seed: int = 0) -> LanguageModel:
    return LanguageModel(make_model("qwen3", seed=seed, max_position_embeddings=length), name=f"holds {length}")


@pytest.mark.parametrize("policy", [Teacher(), TrustRegion(0.1), Student()], ids=str)
@pytest.mark.parametrize(
    "prompt", [Prompt([1, 2, 3, 4]), Prompt([1], teacher_tokens=[1, 2, 3, 4])], ids=["own", "same"]
)
def test_a_teacher_is_given_no_more_than_it_holds(policy: Any, prompt: Prompt) -> None:
    """Whether it reads a prompt of its own, or the student's."""
    match = r"prompt 0 has 4 tokens and 10 may be added, more than the 6 tokens of holds 6"
    with pytest.raises(DataError, match=match):
        PairedEngine(small(64), small(6, seed=1)).generate(policy, [prompt], max_new_tokens=10)
    engine = PairedEngine(small(64), {None: small(64, seed=1), "code": small(6, seed=2)})
    with pytest.raises(DataError, match=match):
        named = Prompt(prompt.student_tokens, prompt.teacher_tokens, teacher_name="code")
        engine.generate(policy, [named], max_new_tokens=10)
    assert engine.generate(policy, [prompt], max_new_tokens=2)


def test_a_teacher_that_does_not_read_does_not_count() -> None:
    """As in an evaluation, whose answers may be longer."""
    engine = PairedEngine(small(64), small(6, seed=1))
    rollouts = engine.generate(Student(), [[1, 2, 3, 4]], max_new_tokens=10, records_statistics=False)
    assert len(rollouts[0]) == 10


def test_no_model_scores_more_than_it_holds() -> None:
    rollouts = PairedEngine(small(64)).generate(Student(), [[1, 2, 3, 4]], max_new_tokens=10)
    match = r"answer 0 with its prompt has 14 tokens, more than the 6 tokens of holds 6"
    models = ModelSet.of(small(64), small(6, seed=1), reference=small(6, seed=2))
    for scorer in (LocalScorer(models.teachers, models.vocabulary, 100), ReferenceScorer(models, 100)):
        with pytest.raises(DataError, match=match):
            scorer.score(rollouts)
    switching = LanguageModel(phi3(max_position_embeddings=512), name="phi")
    with pytest.raises(DataError, match=r"more than the 24 tokens of phi \(its rotary factors change beyond 24"):
        PairedEngine(small(64), switching).generate(Teacher(), [[1, 2, 3, 4]], max_new_tokens=21)


def test_a_token_without_an_embedding_is_named_for_every_reader() -> None:
    narrow = LanguageModel(make_model("qwen3", vocab_size=20, seed=1), name="narrow")
    match = r"has token 3\d, but narrow has embeddings for 20 tokens only"
    with pytest.raises(DataError, match=match):
        PairedEngine(small(64), narrow).generate(Teacher(), [[1, 30]], max_new_tokens=2)
    rollouts = PairedEngine(small(64)).generate(Student(), [[1, 30]], max_new_tokens=2)
    with pytest.raises(DataError, match=match):
        ReferenceScorer(ModelSet.of(small(64), reference=narrow), 100).score(rollouts)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_a_window_is_crossed_as_the_module_crosses_it(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 100 tokens is seen by trying six of them."""
    model = LanguageModel(make_model(architecture, sliding_window=100), name="windowed")
    assert gap(model, text(140), num_last=8) < 1e-9
    check_servable(model)
    assert model.config.sliding_window == 100
    visible_BTS = CacheView.visible_BTS
    monkeypatch.setattr(CacheView, "visible_BTS", lambda view, window=None: visible_BTS(view))
    assert gap(model, text(140), num_last=8) > 0.01
    with pytest.raises(UnsupportedArchitectureError, match=r"differ by .*sliding_window = 100"):
        check_servable(model)


def test_a_window_that_a_module_makes_by_itself_is_refused_by_name() -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=40, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=8, max_position_embeddings=64, intermediate_size=16, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    with pytest.raises(UnsupportedArchitectureError, match="GPTNeoForCausalLM.*layers of type local"):
        check_servable(LanguageModel(transformers.GPTNeoForCausalLM(config).eval()))


def test_a_window_that_a_module_does_not_know_is_refused() -> None:
    """A Llama reads everything, whatever is left in its configuration."""
    module = make_model("llama")
    module.config.sliding_window = 16
    with pytest.raises(UnsupportedArchitectureError, match="sliding_window = 16; null if its code knows none"):
        check_servable(LanguageModel(module, fast_forward=False))
