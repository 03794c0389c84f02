"""Layers of a student and of its softmax original, compared on the original's hidden states."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import make_model
from tutelage.errors import ConfigurationError
from tutelage.models import (
    FixedFusion,
    FusedTeacher,
    LanguageModel,
    check_comparable_layers,
    compared_outputs,
    linearise,
)

SEQUENCES, STARTS = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [4, 3, 2, 1]], [2, 1, 3]
EVERY = {"num_hidden_layers": 3, "dtype": torch.float32}


def pair(layers: tuple[int, ...] = (0, 2), **shape: object) -> tuple[LanguageModel, LanguageModel]:
    module = make_model("qwen3", **EVERY | shape)
    return LanguageModel(linearise(module, layers, feature_size=4).module, name="student"), LanguageModel(module)


def test_both_read_the_hidden_states_of_the_teacher() -> None:
    """Worked out sequence by sequence from the teacher's layers, without padding."""
    student, teacher = pair()
    ours, theirs = compared_outputs(student, teacher, SEQUENCES, STARTS)
    assert ours.shape == theirs.shape == (2, 4 + 2 + 1, 32)
    expected_ours, expected_theirs = [], []
    for place in (0, 2):
        layer = teacher.module.model.layers[place]
        mixer = student.module.model.layers[place].linear_attn
        for sequence, start in zip(SEQUENCES, STARTS, strict=True):
            output = teacher.module(input_ids=torch.tensor([sequence]), output_hidden_states=True, use_cache=False)
            given = layer.input_layernorm(output.hidden_states[place])
            positions = torch.arange(len(sequence))[None]
            embedded = teacher.module.model.rotary_emb(given, positions)
            mask = torch.ones(len(sequence), len(sequence)).tril().bool()[None, None]
            expected_theirs.append(layer.self_attn(given, embedded, mask)[0][0, start:])
            expected_ours.append(mixer(given)[0, start:])
    for found, expected in ((ours, expected_ours), (theirs, expected_theirs)):
        torch.testing.assert_close(found.flatten(0, 1), torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_a_gradient_reaches_the_layer_alone_that_it_is_taken_of() -> None:
    """Whatever the layers before it do, since it reads the teacher's hidden states."""
    student, teacher = pair()
    ours, theirs = compared_outputs(student, teacher, SEQUENCES, STARTS)
    (ours - theirs)[1].square().sum().backward()
    touched = {
        name.split(".")[2] for name, p in student.module.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert touched == {"2"}
    assert all("linear_attn" in n for n, p in student.module.named_parameters() if p.grad is not None and p.grad.any())
    with torch.no_grad():
        student.module.model.layers[0].linear_attn.o_proj.weight.mul_(3)
    again, _ = compared_outputs(student, teacher, SEQUENCES, STARTS)
    torch.testing.assert_close(again[1], ours[1])


def test_recording_leaves_no_hook_behind() -> None:
    student, teacher = pair()
    compared_outputs(student, teacher, SEQUENCES, STARTS)
    assert not any(layer.self_attn._forward_hooks for layer in teacher.module.model.layers)


def test_what_cannot_be_compared_is_refused() -> None:
    student, teacher = pair()
    check_comparable_layers(student, teacher)
    with pytest.raises(ConfigurationError, match="has none. Make a student with `tutelage linearise`"):
        check_comparable_layers(teacher, teacher)
    other = LanguageModel(make_model("qwen3", num_hidden_layers=2), name="other")
    with pytest.raises(ConfigurationError, match="other has 2 layers of width 32, and the student 3 of width 32"):
        check_comparable_layers(student, other)
    fused = FusedTeacher([teacher, teacher], FixedFusion((0.5, 0.5)))
    with pytest.raises(ConfigurationError, match="is several models"):
        check_comparable_layers(student, fused)
