"""Every weight of the model learns; also the member of every model that is not trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tutelage.models.trainables.base import Trainable, TrainableSettings

__all__ = ["ALL_WEIGHTS", "AllWeights", "AllWeightsSettings"]


class AllWeights(Trainable):
    """The whole model."""

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def state(self) -> dict[str, Tensor]:
        """All weights, a tied one under each of its names, and what the model keeps beside them."""
        return dict(self.module.state_dict())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


@dataclass(frozen=True)
class AllWeightsSettings(TrainableSettings):
    """All weights of the model learn."""

    kind: ClassVar[type[Trainable]] = AllWeights


ALL_WEIGHTS = AllWeightsSettings()
