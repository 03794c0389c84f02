"""Our own forward against the module's: decoding, reading packed sequences, gradients, a refilled cache."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.support.tiny_models import HYBRIDS, SHAPE, make_model, rounding
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel, check_servable

TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 0.1}
SEQUENCES = [[1, 2, 3, 4, 5, 6, 7], [9], [3, 3, 1], [1, 2, 3, 4, 8], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def pair(architecture: str, dtype: torch.dtype = torch.float64) -> tuple[LanguageModel, LanguageModel]:
    """One module, seen through our forward where that knows it, and through its own."""
    module = make_model(architecture, seed=4, dtype=dtype)
    return LanguageModel(module), LanguageModel(module, fast_forward=False)


def test_known_architectures_are_recognised_and_others_left_alone(architecture: str) -> None:
    fast, plain = pair(architecture)
    assert fast.uses_fast_forward == (architecture in ("qwen3", "llama"))  # this Mistral has a window
    assert not plain.uses_fast_forward


@pytest.mark.sweeps
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@torch.no_grad()
def test_packed_sequences_equal_the_modules_forward(architecture: str, dtype: torch.dtype) -> None:
    fast, plain = pair(architecture, dtype)
    starts = [3, 0, 1, 3, 3]
    for begins in (None, starts):
        found = fast.hidden_packed(SEQUENCES, begins)
        cuts = begins or [0] * len(SEQUENCES)
        expected = torch.cat(
            [
                plain.module.base_model(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0, cut:]
                for sequence, cut in zip(SEQUENCES, cuts, strict=True)
            ]
        )
        torch.testing.assert_close(found, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])
        torch.testing.assert_close(
            plain.hidden_packed(SEQUENCES, begins), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
        )


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_gradients_equal_the_modules(architecture: str) -> None:
    """In float32, where the norm and the rotation have gradients of their own; prompts shared and not shared."""
    fast, plain = pair(architecture, torch.float32)
    gradients = []
    for model in (fast, plain):
        model.module.zero_grad()
        hidden = model.hidden_packed(SEQUENCES, [3, 0, 1, 3, 3])
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        (hidden * weights).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.module.base_model.named_parameters()})
    for name, gradient in gradients[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=2e-5 * scale)


@torch.no_grad()
def test_rows_taken_over_by_another_prompt(architecture: str) -> None:
    """Ragged prefills, an empty and a one-token prompt among them, copied over filled rows; then T > 1 at once."""
    model, _ = pair(architecture)
    cache = model.new_cache(3, 4)
    device_rows = torch.arange(3)
    cache.copy_rows(model.prefill([[7] * 9, [8] * 2, [9] * 4]), device_rows, device_rows)
    prompts = [[], [5], [1, 2, 3, 4]]
    cache.copy_rows(model.prefill(prompts), device_rows, device_rows)
    new = torch.tensor([[1, 2, 3], [4, 5, 6], [6, 5, 4]])
    positions = torch.tensor([[len(prompt)] for prompt in prompts]) + torch.arange(3)
    logits = model.logits(model.hidden_cached(new, positions, cache, 7))
    for row, prompt in enumerate(prompts):
        expected = model.module(input_ids=torch.tensor([[*prompt, *new[row].tolist()]])).logits[0, -3:]
        torch.testing.assert_close(logits[row], expected, **rounding(architecture))


def test_compiling_a_forward_that_is_not_ours_is_refused() -> None:
    model = LanguageModel(make_model("gemma2"), compile=True, name="student")
    with pytest.raises(ConfigurationError, match=r"rollout\.compile is on, but student \(Gemma2ForCausalLM\)"):
        _ = model.uses_fast_forward


def test_a_forward_that_disagrees_is_left_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(make_model("qwen3", dtype=torch.float32), name="student")
    monkeypatch.setattr(model._own_forward, "scale", 0.5)
    with pytest.warns(UserWarning, match=r"student: our own forward for Qwen3ForCausalLM was refused"):
        check_servable(model)
    assert not model.uses_fast_forward


def test_our_forward_steps_aside_for_what_it_does_not_do() -> None:
    module = make_model("qwen3")
    handle = module.model.layers[0].register_forward_hook(lambda *given: None)
    assert not LanguageModel(module).uses_fast_forward
    handle.remove()
    model = LanguageModel(module)
    assert model.uses_fast_forward
    module.gradient_checkpointing_enable()
    assert not model.uses_fast_forward
    module.gradient_checkpointing_disable()
    module.set_attn_implementation("eager")
    assert model.uses_fast_forward
    windowed, dynamic = (
        make_model("qwen3", sliding_window=4, use_sliding_window=True, max_window_layers=1),
        make_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}),
    )
    assert not LanguageModel(windowed).uses_fast_forward
    assert not LanguageModel(dynamic).uses_fast_forward


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@torch.no_grad()
def test_rotary_embeddings_of_every_known_kind(kind: str) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 128}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    if kind == "linear":
        del rope["original_max_position_embeddings"]
    module = make_model("llama", rope_parameters=rope)
    fast, plain = LanguageModel(module), LanguageModel(module, fast_forward=False)
    assert fast.uses_fast_forward
    torch.testing.assert_close(fast.hidden_packed(SEQUENCES), plain.hidden_packed(SEQUENCES), rtol=1e-9, atol=1e-9)


class Adapted(torch.nn.Module):
    """A low-rank adapter around a linear layer, as adapter libraries put it in the layer's place."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.up = torch.nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.base(states) + self.up(self.down(states))


@torch.no_grad()
def test_biases_and_adapters_are_used() -> None:
    config = transformers.Qwen2Config(**{**SHAPE, "vocab_size": 40, "tie_word_embeddings": True})
    torch.manual_seed(0)
    module = transformers.Qwen2ForCausalLM(config).double().eval()
    fast, plain = LanguageModel(module), LanguageModel(module, fast_forward=False)
    assert fast.uses_fast_forward
    module.model.layers[0].self_attn.k_proj.bias.normal_()
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(module.model.layers[1].self_attn, name, Adapted(getattr(module.model.layers[1].self_attn, name)))
    torch.testing.assert_close(fast.hidden_packed(SEQUENCES), plain.hidden_packed(SEQUENCES), rtol=1e-9, atol=1e-9)
    positions = torch.tensor([[3], [1]]) + torch.arange(2)
    decoded = [
        model.hidden_cached(torch.tensor([[5, 6], [7, 8]]), positions, model.prefill([[1, 2, 3], [4]]), 5)
        for model in (fast, plain)
    ]
    torch.testing.assert_close(*decoded, rtol=1e-9, atol=1e-9)


def test_nothing_wanted_is_nothing_computed(architecture: str) -> None:
    for model in pair(architecture):
        assert model.hidden_packed([[1, 2], []], [2, 0]).shape == (0, 32)


def test_updated_weights_are_seen_at_once() -> None:
    model, _ = pair("qwen3")
    before = model.hidden_packed([[1, 2, 3]])
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert not torch.allclose(model.hidden_packed([[1, 2, 3]]), before)


def test_a_slot_costs_what_it_says() -> None:
    for architecture in ("qwen3", "gemma2", *HYBRIDS):
        model, _ = pair(architecture)
        cache = model.prefill([[1, 2, 3, 4]])
        size = sum(tensor.nbytes for tensor in cache.tensors())
        # A cache that was just filled has one copy of its states; a round makes the other.
        assert size == 4 * model.cache_bytes_per_slot + model.cache_bytes_per_row / 2
        assert (model.cache_bytes_per_row > 0) == (architecture in HYBRIDS)


# --- what an update may save -----------------------------------------------------------------------------------------


def update(model: LanguageModel) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Hidden states, gradients, and the bytes that autograd kept for backward, each storage counted once."""
    storages: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.module.parameters()}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        hidden = model.hidden_packed(SEQUENCES * 20, [3, 0, 1, 3, 3] * 20)
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.module.base_model.named_parameters()}
    return hidden.detach(), gradients, sum(storages.values())


def test_a_checkpointed_gradient_is_the_same_and_keeps_less(architecture: str) -> None:
    fast, plain = pair(architecture, torch.float32)
    for model in (fast, plain):
        hidden, gradients, kept = update(model)
        model.checkpoints_gradient = True
        same_hidden, same_gradients, kept_now = update(model)
        assert torch.equal(hidden, same_hidden)
        assert all(torch.equal(gradient, same_gradients[name]) for name, gradient in gradients.items())
        assert kept_now < kept / 4
        model.checkpoints_gradient = False
        hidden_now, _, kept_now = update(model)
        assert torch.equal(hidden_now, hidden), "nothing of it remains"
        assert kept_now == pytest.approx(kept, rel=0.05)  # experts keep a little more or less, as memory is found


@pytest.mark.parametrize("keeps_less", [False, True])
def test_autocast_decodes_and_reads_alike(architecture: str, keeps_less: bool) -> None:
    """Products in bfloat16 on weights in float32; the cache of our own forward holds what attention reads."""
    module = make_model(architecture, seed=4, dtype=torch.float32, initializer_range=0.1)
    exact = LanguageModel(module).hidden_packed([SEQUENCES[0]]).detach()
    model = LanguageModel(module, autocast=torch.bfloat16, checkpoints_gradient=keeps_less)
    read = model.hidden_packed([SEQUENCES[0]])
    read.sum().backward()
    assert {weight.grad.dtype for weight in module.base_model.parameters() if weight.grad is not None} == {
        torch.float32
    }
    with torch.no_grad(), model.weights_fixed():
        cache = model.prefill([SEQUENCES[0][:4]])
        decoded = model.hidden_cached(torch.tensor([SEQUENCES[0][4:]]), torch.tensor([[4, 5, 6]]), cache, 7)
        assert model.logits(decoded).dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu"), "no other products are touched"
    assert cache.tensors()[0].dtype == (torch.bfloat16 if model.uses_fast_forward else torch.float32)
    scale = float(exact.abs().max())
    assert 0 < float((read - exact).detach().abs().max()) < 0.1 * scale
    torch.testing.assert_close(decoded[0], read[4:].detach(), rtol=0, atol=0.03 * scale)


def test_what_cannot_be_compiled_or_checkpointed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"runtime\.compile is on, but model \(Gemma.* its own forward"):
        LanguageModel(make_model("gemma"), compiles_update=True).check_settings()
    model = LanguageModel(make_model("gemma"), checkpoints_gradient=True)
    model.check_settings()
    model.module.base_model.blocks = model.module.base_model.layers
    del model.module.base_model.layers
    with pytest.raises(ConfigurationError, match=r"gradient_checkpointing is on, .* does not show its layers"):
        model.check_settings()


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # said by the compiler itself
def test_a_compiled_update_is_the_same_up_to_rounding() -> None:
    """One compilation for all layers and lengths: 20 seconds on an idle core."""
    model = LanguageModel(make_model("qwen3", seed=4, dtype=torch.float32, num_hidden_layers=3))
    hidden, gradients, _ = update(model)
    model.compiles_update = True
    for keeps_less in (False, True):
        model.checkpoints_gradient = keeps_less
        found, found_gradients, _ = update(model)
        torch.testing.assert_close(found, hidden, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        model.hidden_packed([[7] * 30, [2]]),
        LanguageModel(model.module).hidden_packed([[7] * 30, [2]]),
        rtol=1e-5,
        atol=1e-5,
    )
