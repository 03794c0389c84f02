"""Attention transfer: a relative error of each layer, averaged."""

from __future__ import annotations

import pytest
import torch

from tutelage.losses.layers import AttentionTransfer


def test_the_mean_of_relative_errors() -> None:
    teacher = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[300.0, 400.0], [0.0, 200.0]]])
    student = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 100.0]]])
    found = AttentionTransfer().on_layers(student, teacher)
    assert found.tolist() == pytest.approx([(0 + 1) / 2, (1 + 0.5) / 2]), "a layer's scale does not count"


def test_equal_outputs_have_no_error_and_a_finite_gradient() -> None:
    teacher = torch.randn(2, 3, 4)
    teacher[0, 0] = 0
    student = teacher.clone().requires_grad_()
    values = AttentionTransfer().on_layers(student, teacher)
    values.sum().backward()
    assert values.tolist() == [0, 0, 0] and student.grad is not None and student.grad.isfinite().all()
