"""Rows of logits, and slow float64 forms of what is computed from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INF = math.inf
RADII = [1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.05, 0.5, 5.0]


def draw(*shape: int, std: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std


def related_rows(rows: int, vocabulary: int, std: float, likeness: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher logits that correlate, as those of real pairs do."""
    student, noise = draw(2, rows, vocabulary, std=std, seed=seed)
    return student, likeness * student + math.sqrt(1 - likeness**2) * noise


def nearly_equal_rows() -> tuple[Tensor, Tensor]:
    """Teachers that differ from their student by noise of 1e-6 to 1e-2."""
    student = draw(80, 100, std=3.0)
    noise = torch.tensor([1e-6, 1e-5, 1e-4, 1e-3, 1e-2]).repeat(16).unsqueeze(-1) * draw(80, 100, seed=1)
    return student, student + noise


def rows_with_one_confident_side() -> tuple[Tensor, Tensor]:
    """Rows whose KL stays flat over most of the path, and rows where it shoots up at the end."""
    student, teacher = related_rows(200, 17, 1.0)
    student[:100, 3] += torch.linspace(5, 200, 100)
    teacher[50:150, 5] += torch.linspace(5, 200, 100)
    return student, teacher


def log64(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def kl64(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p == -INF, 0.0, p.exp() * (p - q)).sum(-1)


def blend64(p: Tensor, q: Tensor, blend: Tensor) -> Tensor:
    blend = blend.double().unsqueeze(-1)
    between = ((1 - blend) * p + blend * q).log_softmax(-1)
    return torch.where(blend == 0, p, torch.where(blend == 1, q, between))


def bisect(p: Tensor, q: Tensor, radius: Tensor, iterations: int = 100) -> Tensor:
    """Feasible end of the bracket after so many halvings. Disjoint rows are NaN inside, hence never feasible."""
    low, high = torch.zeros_like(radius), torch.ones_like(radius)
    for _ in range(iterations):
        middle = (low + high) / 2
        fits = kl64(blend64(p, q, middle), p) <= radius
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    low = torch.where(kl64(q, p) <= radius, 1.0, low)
    return torch.where(radius > 0, low, 0.0)
