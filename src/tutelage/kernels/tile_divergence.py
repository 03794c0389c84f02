"""Two models side by side on a tile: the divergence's share there, and its gradient on the student's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tutelage.kernels.sampler import has_kernels
from tutelage.kernels.tiles import LogMass, TiledLogits

__all__ = [
    "Between",
    "FullDivergence",
    "TileDivergence",
    "entry_bytes",
    "tile_divergence_for",
    "tiled_logits_for",
]

Between = Callable[[Tensor, Tensor], Tensor]


class FullDivergence(NamedTuple):
    """A divergence over the whole vocabulary.

    Fields:
      between: (log p, log q), [n, m] each -> [n], a sum over the m events. It need not be one where a tile has the
        whole vocabulary. Differentiated in its first argument.
      factor: what it is multiplied with; not 0.
      jsd_share: it is the generalised Jensen-Shannon divergence with this share of the target, reverse (1) and forward
        KL (0) among them; None = it is not. There are kernels for these.
    """

    between: Between
    factor: float = 1.0
    jsd_share: float | None = None


class TileDivergence:
    """In plain torch, for any divergence.

    Args:
      student, target: logits at the same tokens.
      student_mass, target_mass: their log masses.
      divergence: what is taken of them; its factor is left to the caller.
      is_learning: slopes are wanted.
    """

    logits_class: ClassVar[type[TiledLogits]] = TiledLogits

    def __init__(
        self,
        student: TiledLogits,
        student_mass: LogMass,
        target: TiledLogits,
        target_mass: LogMass,
        divergence: FullDivergence,
        is_learning: bool,
    ) -> None:
        self.student, self.student_mass = student, student_mass
        self.target, self.target_mass = target, target_mass
        self.divergence, self.is_learning = divergence, is_learning
        self._slopes: dict[int, Tensor] = {}

    def sums(self, tile: slice) -> tuple[Tensor, Tensor]:
        """A tile's share of D and of Σ g, [n] each."""
        value_n, slopes_nm = self._value_and_slopes(tile)
        if self.student.keeps and self.is_learning:
            self._slopes[tile.start] = slopes_nm
            self.target.drop(tile)  # its slopes take its place
        return value_n, slopes_nm.sum(-1)

    def gradient(self, tile: slice, slope_n: Tensor, weights_n: Tensor) -> Tensor:
        """w (g - p Σ g) on the shared logits of a tile, [n, m].

        Args:
          slope_n: Σ g over the whole vocabulary.
          weights_n: w.
        """
        slopes_nm = self._slopes.pop(tile.start) if self.student.keeps else self._value_and_slopes(tile)[1]
        probs_nm = self.student_mass.normalised(self.student.shared_logits(tile)).exp_()
        gradient_nm = probs_nm.mul_(-slope_n[:, None]).add_(slopes_nm).mul_(weights_n[:, None])
        return gradient_nm.masked_fill_((weights_n == 0)[:, None], 0)

    def _value_and_slopes(self, tile: slice) -> tuple[Tensor, Tensor]:
        logprobs_nm = self.student_mass.normalised(self.student.shared_logits(tile))
        target_nm = self.target_mass.normalised(self.target.shared_logits(tile))
        if not self.is_learning:
            value_n = self.divergence.between(logprobs_nm, target_nm)
            return value_n, torch.zeros_like(value_n)[:, None]
        with torch.enable_grad():
            value_n = self.divergence.between(logprobs_nm.requires_grad_(), target_nm)
            (slopes_nm,) = torch.autograd.grad(value_n.sum(), logprobs_nm)
        return value_n.detach(), slopes_nm


def tile_divergence_for(device: torch.device, jsd_share: float | None, keeps: bool) -> type[TileDivergence]:
    """The class that computes on tiles."""
    if jsd_share is not None and keeps and has_kernels(device):
        from tutelage.kernels.triton_loss import TritonTileDivergence

        return TritonTileDivergence
    return TileDivergence


def tiled_logits_for(device: torch.device, keeps: bool) -> type[TiledLogits]:
    """The class of one model's logits, where they are all that is looked at."""
    if keeps and has_kernels(device):
        from tutelage.kernels.triton_loss import TritonLogits

        return TritonLogits
    return TiledLogits


def entry_bytes(device: torch.device, jsd_share: float | None, student: torch.dtype, target: torch.dtype) -> int:
    """Bytes that are kept of a column of a token."""
    if tile_divergence_for(device, jsd_share, keeps=True) is TileDivergence:
        # Slopes, in float32 or wider, take the place of the target's logits.
        return student.itemsize + max(4, student.itemsize, target.itemsize)
    return student.itemsize + target.itemsize
