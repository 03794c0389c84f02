"""Adapters: the base stays, a fresh one changes nothing, files open elsewhere, merging keeps the distribution."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.errors import ConfigurationError, ModelError
from tutelage.models import (
    AdapterSettings,
    LanguageModel,
    ModelSource,
    check_quantization,
    context_length_of,
    export_model,
    load_language_model,
    load_tokenizer,
    meta_model_of,
    reference_snapshot,
    save_for_serving,
    save_student,
)
from tutelage.models.quantised import quantised
from tutelage.models.trainables import AllWeights
from tutelage.models.trainables.adapter_folder import Base, fingerprint
from tutelage.models.vocabulary import Vocabulary

SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 3, 1], [1, 2, 3, 4, 8]]
each_method = pytest.mark.parametrize("method", ["lora", "rslora", "dora"])


def adapted(module: Any, method: Any = "lora", seed: int = 0, **settings: Any) -> LanguageModel:
    settings = {"rank": 4, "alpha": 8, **settings}
    base = Base("base", sha256=fingerprint(module))
    model = LanguageModel(module, trainable=AdapterSettings(method, **settings).put_on(module, base, seed))
    model.enable_grad()
    return model


def shake(model: LanguageModel, seed: int = 0, size: float = 0.05) -> None:
    """An adapter as it may be after some training."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.trainable_state().values():
        weight.add_(size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))


def logprobs(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)


def train_a_little(model: LanguageModel, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.module.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()


@each_method
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma"])
def test_only_the_adapter_learns_and_merging_keeps_what_it_learned(architecture: str, method: str) -> None:
    module = make_model(architecture, dtype=torch.float32, initializer_range=0.1)
    before = logprobs(LanguageModel(module))
    base = {name: weight.clone() for name, weight in module.state_dict().items()}
    model = adapted(module, method)
    assert torch.equal(logprobs(model), before), "a fresh adapter changes no bit"
    assert model.uses_fast_forward == (architecture != "gemma")

    train_a_little(model)
    learned = logprobs(model)
    assert float((learned - before).abs().max()) > 1e-3
    for name, weight in module.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    assert {name for name, weight in module.named_parameters() if weight.requires_grad} == set(
        model.trainable.parameters()
    )

    merged = LanguageModel(model.trainable.merged())
    assert {name for name, _ in merged.module.named_parameters()} == {name for name in base if name != "lm_head.weight"}
    assert float((logprobs(merged) - learned).abs().max()) < 1e-5


@each_method
def test_our_own_forward_sees_the_adapter_as_the_modules_does(method: str) -> None:
    model = adapted(make_model("qwen3"), method)
    shake(model)
    plain = LanguageModel(model.module, fast_forward=False)
    assert model.uses_fast_forward
    torch.testing.assert_close(logprobs(model), logprobs(plain), rtol=1e-9, atol=1e-9)
    with torch.no_grad(), model.weights_fixed():
        cache = model.prefill([[1, 2, 3]])
        tokens, places = torch.tensor([[4, 8]]), torch.tensor([[3, 4]])
        cached = model.logits(model.hidden_cached(tokens, places, cache, 5)).log_softmax(-1)
    torch.testing.assert_close(cached[0], logprobs(model)[-2:], rtol=1e-9, atol=1e-9)


def test_the_gradient_of_an_adapter_is_the_weights_own_by_the_chain_rule() -> None:
    """W + s B A: dL/dB = s G A^T and dL/dA = s B^T G, with G = dL/dW of the merged weights."""
    model = adapted(make_model("qwen3"), "rslora")
    shake(model)
    logits = model.logits(model.hidden_packed(SEQUENCES))
    logits.log_softmax(-1)[:, 3].mean().backward()
    found = {
        name: weight.grad.clone() for name, weight in model.trainable.parameters().items() if weight.grad is not None
    }
    weights = {name: weight.detach().clone() for name, weight in model.trainable.parameters().items()}

    merged = LanguageModel(model.trainable.merged())
    merged.module.requires_grad_(True)
    merged.logits(merged.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean().backward()
    scale = 8 / math.sqrt(4)
    assert len(found) == 2 * 7 * 2
    for name, weight in merged.module.named_parameters():
        down, up = (f"{name.removesuffix('.weight')}.lora_{part}.default.weight" for part in "AB")
        if down in weights:
            assert weight.grad is not None
            torch.testing.assert_close(found[up], scale * weight.grad @ weights[down].T)
            torch.testing.assert_close(found[down], scale * weights[up].T @ weight.grad)


@each_method
def test_an_reference_snapshot_shares_the_backbone_and_keeps_a_graph_whole(method: str) -> None:
    model = adapted(make_model("llama"), method)
    first = reference_snapshot(model)
    base = logprobs(first)
    shake(model)
    assert first.module is model.module and torch.equal(logprobs(first), base)

    def gradients(is_read_meanwhile: bool) -> dict[str, torch.Tensor]:
        model.module.zero_grad()
        loss = model.logits(model.hidden_packed(SEQUENCES)).log_softmax(-1)[:, 3].mean()
        if is_read_meanwhile:
            assert not first.hidden_packed(SEQUENCES).requires_grad
        loss.backward()
        return {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}

    expected, found = gradients(False), gradients(True)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    first.load_trainable_state(model.trainable_state())
    assert torch.equal(logprobs(first), logprobs(model))
    shake(model, seed=1)
    assert not torch.equal(logprobs(first), logprobs(model)), "it was a copy"


def test_norms_are_kept_only_while_weights_are_fixed() -> None:
    model = adapted(make_model("qwen3"), "dora")
    shake(model)
    with model.weights_fixed():
        fixed = logprobs(model)
    assert torch.equal(fixed, logprobs(model))
    shake(model, seed=1)
    with model.weights_fixed():
        again = logprobs(model)
    assert not torch.equal(again, fixed) and torch.equal(again, logprobs(model))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "base", make_tokenizer(), padded_size=264, stop_ids=256, seed=1))


def loaded(path: str, *, dtype: str = "float32", **settings: Any) -> LanguageModel:
    return load_language_model(ModelSource(path, dtype), load_tokenizer(path), **settings)


@each_method
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's wrapper, which only this test makes
def test_an_adapters_folder_opens_like_a_model(tmp_path: Path, base: str, method: Any) -> None:
    model = loaded(base, trainable=AdapterSettings(method, 4, 8), seed=7)
    shake(model)
    for folder in (tmp_path / "saved", tmp_path / "again"):
        folder.mkdir()
        save_student(model, Vocabulary(259, (256, 258), 256), folder)
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names and "config.json" not in names
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base and config["target_modules"] == sorted(config["target_modules"])
    assert "q_proj" in config["target_modules"]

    saved = str(tmp_path / "saved")
    opened = loaded(saved)
    assert opened.stop_ids[:2] == (256, 258), "it stops where it was trained to"
    assert torch.equal(logprobs(opened), logprobs(model))
    assert context_length_of(saved) == context_length_of(base)
    meta_model = meta_model_of(saved, model.tokenizer)
    shapes = {name: weight.shape for name, weight in opened.trainable.parameters().items()}
    assert {name: weight.shape for name, weight in meta_model.trainable.parameters().items()} == shapes

    export_model(opened, torch.float32, tmp_path / "merged")
    plain = LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((logprobs(plain) - logprobs(model)).abs().max()) < 1e-5
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), saved)
    assert torch.equal(logprobs(LanguageModel(theirs.get_base_model())), logprobs(model))


@each_method
def test_weights_are_merged_into_copies_and_the_student_learns_on(tmp_path: Path, base: str, method: Any) -> None:
    model = loaded(base, trainable=AdapterSettings(method, 4, 8))
    shake(model)
    before, state = logprobs(model), {name: weight.clone() for name, weight in model.module.state_dict().items()}
    model.module.save_pretrained(tmp_path / "plain", state_dict=model.trainable.merged_weights())
    model.tokenizer.save_pretrained(tmp_path / "plain")
    assert torch.equal(logprobs(model), before)
    assert all(torch.equal(weight, state[name]) for name, weight in model.module.state_dict().items())
    plain = loaded(str(tmp_path / "plain"))
    assert isinstance(plain.trainable, AllWeights) and float((logprobs(plain) - before).abs().max()) < 1e-5
    save_for_serving(model, tmp_path / "untied")
    assert torch.equal(logprobs(loaded(str(tmp_path / "untied"))), logprobs(plain))
    assert float((logprobs(plain) - logprobs(loaded(base))).abs().max()) > 1e-3


def test_an_adapter_that_peft_wrote_opens_too(tmp_path: Path, base: str) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuner = peft.LoraModel(module, config, "default")
    state = {f"base_model.model.{n}": w for n, w in peft.get_peft_model_state_dict(tuner.model).items()}
    from safetensors.torch import save_file

    (tmp_path / "theirs").mkdir()
    save_file(state, tmp_path / "theirs/adapter_model.safetensors")
    config.base_model_name_or_path = base
    config.save_pretrained(str(tmp_path / "theirs"))
    assert torch.equal(logprobs(loaded(str(tmp_path / "theirs"))), logprobs(LanguageModel(module.eval())))


def test_what_does_not_fit_is_refused(tmp_path: Path, base: str) -> None:
    model = loaded(base, trainable=AdapterSettings("lora", 4, 8))
    folder = tmp_path / "saved"
    folder.mkdir()
    save_student(model, Vocabulary(259, (256,), 256), folder)
    for settings in (
        AdapterSettings("lora", 2),
        AdapterSettings("dora", 4),
        AdapterSettings(target_modules=("q_proj",)),
    ):
        other = loaded(base, trainable=settings).trainable
        with pytest.raises(ModelError, match=r"cannot be put on|is on one side only"):
            other.load(folder)
    save_model(tmp_path / "base", make_tokenizer(), padded_size=264, stop_ids=256, seed=2)
    with pytest.raises(ModelError, match=r"was trained on other weights than .*base' has now"):
        loaded(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name its model"):
        loaded(str(folder))
    for targets, message in ((("nothing",), r"does not fit base: "), (("lm_head",), "the embeddings or the head")):
        with pytest.raises(ConfigurationError, match=message):
            adapted(make_model("llama", tie=False), target_modules=targets)


def test_a_fingerprint_is_of_the_numbers_and_not_of_their_type(base: str) -> None:
    found = {fingerprint(loaded(base, dtype=dtype).module) for dtype in ("float32", "bfloat16", "float64")}
    assert len(found) == 1
    module = loaded(base).module
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 4] *= 1.01
    assert fingerprint(module) not in found


def test_the_seed_decides_a_fresh_adapter_and_nobody_elses_numbers(base: str) -> None:
    torch.manual_seed(5)
    first, same, other = (loaded(base, trainable=AdapterSettings(), seed=seed).trainable_state() for seed in (1, 1, 2))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_backbone_in_bfloat16_keeps_its_adapter_in_float32(base: str) -> None:
    model = loaded(base, dtype="bfloat16", trainable=AdapterSettings())
    assert {weight.dtype for weight in model.trainable_state().values()} == {torch.float32}
    assert logprobs(model).dtype == torch.bfloat16


def test_4_bit_weights_are_for_cuda_and_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"on cpu; .* CUDA kernels of bitsandbytes"):
        check_quantization("4bit", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install bitsandbytes"):
        quantised("4bit", torch.bfloat16, "cuda:0")


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("alpha", 0), ("learning_rate_factor", float("inf"))])
def test_numbers_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"student.adapter.{field} is"):
        AdapterSettings(**{field: value})
