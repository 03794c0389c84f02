from __future__ import annotations

import pytest
import torch
import transformers

from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.errors import ConfigurationError, ModelError, UnsupportedArchitectureError
from tutelage.models import (
    LanguageModel,
    ModelSource,
    Vocabulary,
    as_language_model,
    check_distinct,
    check_servable,
    load_language_model,
    load_tokenizer,
    save_student,
)
from tutelage.models.module_forward import ModuleForward


def decode_one_by_one(model: LanguageModel, sequences: list[list[int]], split: int) -> list[torch.Tensor]:
    """Logits after every single token that is fed after a prefill of each row's own length."""
    lengths = torch.tensor([min(split + row, len(s) - 1) for row, s in enumerate(sequences)])
    cache = model.prefill([s[:n] for s, n in zip(sequences, lengths.tolist(), strict=True)])
    logits: list[list[torch.Tensor]] = [[] for _ in sequences]
    for step in range(min(len(s) for s in sequences) - int(lengths.max())):
        tokens = torch.tensor([[s[int(n) + step]] for s, n in zip(sequences, lengths, strict=True)])
        hidden = model.hidden_cached(tokens, (lengths + step)[:, None], cache, int(lengths.max()) + step + 1)
        for row, new in zip(logits, model.logits(hidden[:, -1]), strict=True):
            row.append(new)
    return [torch.stack(row) for row in logits]


@torch.no_grad()
def test_ragged_cached_decoding_equals_plain_forwards(architecture: str) -> None:
    model = as_language_model(make_model(architecture, seed=4))
    sequences = torch.randint(0, 40, (3, 14), generator=torch.Generator().manual_seed(0)).tolist()
    for row, (sequence, cached) in enumerate(zip(sequences, decode_one_by_one(model, sequences, 3), strict=True)):
        plain = model.module(input_ids=torch.tensor([sequence])).logits[0]
        start = 3 + row
        torch.testing.assert_close(cached, plain[start : start + len(cached)], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_rolled_back_draft_leaves_no_trace(architecture: str) -> None:
    """Several tokens are drafted in rows of different lengths, refused, and written over."""
    model = as_language_model(make_model(architecture, seed=4))
    tokens = torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(1))
    cache = model.prefill(tokens[:, :5].tolist())
    starts = torch.tensor([[3], [5]])
    draft = starts + torch.arange(4)
    model.hidden_cached(torch.full((2, 4), 39), draft, cache, 9)
    hidden = model.hidden_cached(tokens.gather(1, draft), draft, cache, 9)
    plain = model.module(input_ids=tokens).logits
    expected = plain.gather(1, draft[..., None].expand(-1, -1, plain.shape[-1]))
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_cache_rows_can_be_repeated_and_dropped() -> None:
    model = as_language_model(make_model("qwen3", seed=4))
    tokens = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(1))
    cache = model.prefill(tokens[:, :6].tolist())
    rows = torch.tensor([1, 1, 0])
    cache.select(rows)
    hidden = model.hidden_cached(tokens[rows, 6:], torch.tensor([[6, 7]]).expand(3, 2), cache, 8)
    torch.testing.assert_close(model.logits(hidden), model.module(input_ids=tokens[rows]).logits[:, 6:])


def test_every_served_architecture_passes_the_check_in_every_type(architecture: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_servable(as_language_model(make_model(architecture, dtype=dtype)))


def test_linear_attention_is_refused_by_name() -> None:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, eos_token_id=0, pad_token_id=0
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"thing is a MambaForCausalLM.*linear_attention"):
        check_servable(as_language_model(transformers.MambaForCausalLM(config), "thing"))


def test_a_head_that_scales_its_logits_is_caught_by_trying() -> None:
    config = transformers.CohereConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, logit_scale=0.25,
    )  # fmt: skip
    with pytest.raises(UnsupportedArchitectureError, match=r"CohereForCausalLM.*differ by"):
        check_servable(as_language_model(transformers.CohereForCausalLM(config).eval()))


def test_a_model_that_ignores_our_mask_is_caught_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(make_model("qwen3", dtype=torch.float32), fast_forward=False)
    monkeypatch.setattr(ModuleForward, "_masks", lambda forward, view: None)
    with pytest.raises(UnsupportedArchitectureError, match="differ by|failed with"):
        check_servable(model)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "could be loaded"),
    ],
)
def test_broken_model_directories(tmp_path, spoil, message) -> None:
    folder = save_model(tmp_path / "model", make_tokenizer(), padded_size=264, stop_ids=256, seed=0)
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load_language_model(str(folder), make_tokenizer())


def test_a_missing_directory_is_not_looked_up_on_the_hub(tmp_path) -> None:
    for load in (load_tokenizer, lambda path: load_language_model(path, None)):
        with pytest.raises(ModelError, match="does not exist"):
            load(str(tmp_path / "nothing"))


def test_teacher_must_not_be_the_student(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigurationError, match="cannot learn from itself"):
        check_distinct(ModelSource(str(tmp_path / "model")), ModelSource(str(tmp_path / "model" / ".." / "model")))
    check_distinct(ModelSource("Qwen/Qwen3-0.6B"), ModelSource("Qwen/Qwen3-0.6B", revision="other-revision"))
    check_distinct(ModelSource("Qwen/Qwen3-0.6B"), ModelSource("Qwen/Qwen3-4B"))


def test_a_saved_student_stops_where_it_was_trained_to(tmp_path) -> None:
    folder = save_model(tmp_path / "model", make_tokenizer(), padded_size=264, stop_ids=256, seed=0)
    student = load_language_model(str(folder), load_tokenizer(str(folder)))
    assert student.stop_ids == (256,)
    save_student(student, Vocabulary(259, stop_ids=(256, 258), stop_id=256), tmp_path / "saved")
    again = load_language_model(str(tmp_path / "saved"), load_tokenizer(str(tmp_path / "saved")))
    assert again.stop_ids == (256, 258)
    assert student.module.generation_config.eos_token_id == 256
    for name, weight in student.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name])
