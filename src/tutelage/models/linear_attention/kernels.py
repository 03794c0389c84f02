"""What does a query give a key for a weight, where softmax is replaced?  As a number, and as a product of features.

With s = q · k / sqrt(D), a kernel is a polynomial of s, so there are features with κ(s) = φ(q) · φ(k), and a sum over
all earlier tokens is one matrix. Products of two entries are taken once and not twice: D (D + 1) / 2 of them.

Axis letters: D entries of a query or key, F features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["KERNELS", "Based", "Kernel", "ReBased"]


@dataclass(frozen=True)
class Kernel(ABC):
    """A weight that is a polynomial of s = q · k / sqrt(D).

    is_normalised: queries and keys are normalised first, by a LayerNorm each over all heads; scale and shift learn.
    """

    is_normalised: ClassVar[bool]

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """κ(s), entry by entry."""

    @abstractmethod
    def features(self, vectors_D: Tensor) -> Tensor:
        """φ: [..., D] -> [..., F], with φ(q) · φ(k) = κ(q · k / sqrt(D))."""

    @abstractmethod
    def num_features(self, size: int) -> int:
        """F of vectors with so many entries."""


@dataclass(frozen=True)
class ReBased(Kernel):
    """κ(s) = s², of normalised queries and keys with a scale and a shift that learn (arXiv 2402.10644, sec. 4).

    The parabola's minimum is 0, so a token can get no weight at all. It is even: k and -k get the same.
    """

    is_normalised: ClassVar[bool] = True

    def weights(self, scores: Tensor) -> Tensor:
        return scores.square()

    def features(self, vectors_D: Tensor) -> Tensor:
        return _products(vectors_D)

    def num_features(self, size: int) -> int:
        return size * (size + 1) // 2


@dataclass(frozen=True)
class Based(Kernel):
    """κ(s) = 1 + s + s² / 2, Taylor's polynomial of exp (Based, arXiv 2402.18668).

    It is 1/2 at least, so every token gets some weight.
    """

    is_normalised: ClassVar[bool] = False

    def weights(self, scores: Tensor) -> Tensor:
        return 1 + scores + scores.square() / 2

    def features(self, vectors_D: Tensor) -> Tensor:
        linear_D = vectors_D / vectors_D.shape[-1] ** 0.25
        return torch.cat((torch.ones_like(vectors_D[..., :1]), linear_D, _products(vectors_D) / math.sqrt(2)), dim=-1)

    def num_features(self, size: int) -> int:
        return 1 + size + size * (size + 1) // 2


KERNELS: dict[str, Kernel] = {"rebased": ReBased(), "based": Based()}


def _products(vectors_D: Tensor) -> Tensor:
    """Products of two entries, weighed so that φ(q) · φ(k) = (q · k)² / D: [..., D (D + 1) / 2]."""
    first, second, scale = _pairs(vectors_D.shape[-1], vectors_D.dtype, vectors_D.device)
    return vectors_D[..., first] * vectors_D[..., second] * scale


@lru_cache
def _pairs(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Places of two entries, each pair once, and what their product is multiplied with."""
    first, second = torch.triu_indices(size, size, device=device)
    # Off the diagonal each product stands for two.
    scale = torch.full_like(first, math.sqrt(2 / size), dtype=dtype)
    scale[first == second] = 1 / math.sqrt(size)
    return first, second, scale
