"""`benchmarks/real_pair.py`: sets that have nothing in common, a verifier, and models without some of their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer


@pytest.fixture
def real_pair(benchmark_module: Callable[[str], Any]) -> Any:
    return benchmark_module("real_pair")


def test_no_text_and_no_item_is_in_two_sets(real_pair: Any) -> None:
    sets = real_pair.prompt_sets([])
    texts = {name: {row["problem"] for row in rows} for name, rows in sets.items()}
    assert {name: len(rows) for name, rows in sets.items()} == real_pair.NUM_ROWS
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
    trained, held_out = (
        {row["answer"] for row in sets[name] if row["kind"] == "capital"} for name in ("train", "held_out")
    )
    assert trained and held_out and not trained & held_out
    assert not {row["kind"] for row in sets["train"]} & {row["kind"] for row in sets["other_kinds"]}
    assert sets == real_pair.prompt_sets([]), "the same sets for everyone"


@pytest.mark.parametrize(
    ("response", "answer", "is_right"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("It is paris!", "Paris", True),
        ("Parisian", "Paris", False),
        ("17 + 25 = 42.", "42", True),
        ("It is 142.", "42", False),
        ("It is 42.5", "42", False),
        ("", "42", False),
    ],
)
def test_an_answer_stands_by_itself(real_pair: Any, response: str, answer: str, is_right: bool) -> None:
    assert real_pair.contains(response, answer) == is_right


def test_layers_are_cut_and_the_rest_computes_as_they_would_alone(real_pair: Any) -> None:
    model = make_model("llama", num_hidden_layers=5, vocab_size=264)
    tokens = torch.tensor([[5, 6, 7]])
    states = model(tokens, output_hidden_states=True).hidden_states
    real_pair.keep_layers(model, [0, 1, 2])
    torch.testing.assert_close(model(tokens, output_hidden_states=True).hidden_states[:3], states[:3])
    assert model.config.num_hidden_layers == 3 and [layer.self_attn.layer_idx for layer in model.model.layers] == [
        0,
        1,
        2,
    ]
    assert model.generate(tokens, max_new_tokens=2, do_sample=False).shape[1] <= 5, "its cache has a place for each"


def test_a_layer_that_changes_nothing_has_no_influence(real_pair: Any) -> None:
    model = make_model("llama", num_hidden_layers=4, vocab_size=264)
    for weights in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
        weights.weight.data.zero_()
    found = real_pair.influences(model, make_tokenizer(), ["What is 1 + 1?", "Name a tree."], [0, 2, 3])
    assert found.keys() == {0, 2} and abs(found[2]) < 1e-9 < found[0]
    assert len(model.model.layers) == model.config.num_hidden_layers == 4, "and the model is whole again"
