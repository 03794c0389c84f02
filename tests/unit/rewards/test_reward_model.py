"""Reward models: their numbers are those of transformers, whatever the batch; what cannot be one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.rated_answers import answers_of
from tests.support.reward_models import save_reward_model
from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.errors import ConfigurationError, ModelError, RewardError
from tutelage.rewards import RewardModel, Setting

TEXTS = ["a", "a much longer answer\nof two lines", "", "9"]


def of_transformers(folder: Path, texts: list[str]) -> list[float]:
    """One conversation at a time, through transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for place, text in enumerate(texts):
        messages = [{"role": "user", "content": f"What is {place}?"}, {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found.append(model(ids).logits.item())
    return found


@pytest.mark.parametrize("pad", [256, None], ids=["padded", "one by one"])
@pytest.mark.parametrize("max_batch_tokens", [1, 120, 16_384])
def test_its_numbers_are_the_models_in_any_batch(tmp_path: Path, pad: int | None, max_batch_tokens: int) -> None:
    folder = save_reward_model(tmp_path / "rm", pad=pad)
    judge = RewardModel(str(folder), max_batch_tokens=max_batch_tokens).opened(Setting())
    found = judge(answers_of(TEXTS))
    assert found.tolist() == pytest.approx(of_transformers(folder, TEXTS), rel=1e-5, abs=1e-6)
    assert len(set(found.tolist())) == len(TEXTS)


def test_without_a_template_it_reads_a_pair(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    folder = save_reward_model(tmp_path / "rm", tokenizer=tokenizer)
    with pytest.raises(ConfigurationError, match=r"reward\.path is .*, whose tokenizer has no chat template"):
        RewardModel(str(folder)).check(Setting())
    reward = RewardModel(str(folder), use_chat_template=False)
    reward.check(Setting())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = tokenizer("What is 0?", "zero", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits.item()
    assert reward.opened(Setting())(answers_of(["zero"])).tolist() == pytest.approx([expected], rel=1e-5)


def test_narrow_weights_give_about_the_same(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm")
    wide, narrow = (RewardModel(str(folder), dtype=dtype).opened(Setting()) for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(narrow(answers_of(TEXTS)), wide(answers_of(TEXTS)), atol=0.2, rtol=0.05)


def test_a_conversation_beyond_the_context_is_not_cut(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm", max_position_embeddings=80)
    judge = RewardModel(str(folder)).opened(Setting())
    assert judge(answers_of(["short"])).isfinite().all()
    with pytest.raises(
        RewardError, match=r"problem p1 and its answer have \d+ tokens for the .* which reads 80 at most"
    ):
        judge(answers_of(["short", "x" * 100]))


def test_what_is_read_is_known_again(tmp_path: Path) -> None:
    one = RewardModel(str(save_reward_model(tmp_path / "one"))).check(Setting())
    assert set(one) == {"weights", "tokenizer", "template"}
    assert RewardModel(str(save_reward_model(tmp_path / "moved"))).check(Setting()) == one
    other = save_reward_model(tmp_path / "other", num_hidden_layers=3)
    assert RewardModel(str(other)).check(Setting())["weights"] != one["weights"]


def test_a_template_may_ask_for_the_date(tmp_path: Path) -> None:
    tokenizer, setting = make_tokenizer(), Setting()
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + tokenizer.chat_template
    RewardModel(str(save_reward_model(tmp_path / "rm", tokenizer=tokenizer))).check(setting)
    assert setting.clock.was_asked


def _with_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: save_reward_model(path, num_labels=2), r"has 2 outputs; expected one, which is the reward"),
        (
            lambda path: save_model(path, make_tokenizer(), padded_size=264, stop_ids=256, seed=0, num_labels=1),
            r"they lack score\.weight, which its configuration asks for",
        ),
        (lambda path: save_reward_model(path, vocab_size=200, pad=0), r"has the id 258, and the model 200 rows"),
        (lambda path: path, r"model directory .* does not exist"),
        (lambda path: _with_another_width(save_reward_model(path)), r"the weights of .* are not those of the model"),
    ],
    ids=["several outputs", "a language model", "another tokenizer", "nothing", "other shapes"],
)
def test_what_is_no_reward_model_is_refused_before_it_is_loaded(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "rm")
    with pytest.raises(ModelError, match=message):
        RewardModel(str(tmp_path / "rm")).check(Setting())


def test_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert RewardModel("~/models/rm").path == "/home/somebody/models/rm"
    with pytest.raises(ConfigurationError, match=r"reward\.path"):
        RewardModel("a\nb")


def test_a_model_with_nan_is_refused(tmp_path: Path) -> None:
    folder = save_reward_model(tmp_path / "rm")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"weights that are NaN or infinite, such as score\.weight"):
        RewardModel(str(folder)).opened(Setting())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, r"reward\.dtype is 'int8'; expected one of float32"),
        ({"max_batch_tokens": 0}, r"reward\.max_batch_tokens is 0; expected 1 token or more"),
    ],
)
def test_refuses_impossible_fields_with_the_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RewardModel("rm", **fields)
