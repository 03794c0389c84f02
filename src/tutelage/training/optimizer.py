"""AdamW with the field's settings, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from tutelage.errors import ConfigurationError

__all__ = ["OptimizerSettings"]

MAX_FACTOR = 1000.0  # far beyond any use, and far below what overflows


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, a short cosine warm-up, then a constant rate (TRB, arXiv 2605.31159, training configuration).

    Fields:
      name: of the update, see `training.UPDATES`.
      learning_rate: after the warm-up.
      warmup_steps: W; 0 = none.
      weight_decay, beta1, beta2, epsilon: of AdamW.
      max_grad_norm: gradients are clipped to this 2-norm.
      updates_per_batch: the batch of a step is cut by prompts into so many parts, with an update for each.
      epochs_per_batch: how often all of these updates are made on the batch of a step: PPO's epochs. From the second
        update on, the answers are those of an older student, which clipped surrogates allow for.
    """

    name: str = "adamw"
    learning_rate: float = 1e-5
    warmup_steps: int = 15
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    updates_per_batch: int = 1
    epochs_per_batch: int = 1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm", "epsilon"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"optimizer.{name} is {value}; it must be a positive number.")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"optimizer.{name} is {getattr(self, name)}; expected a number from 0 up.")
        for name in ("learning_rate", "weight_decay", "epsilon"):
            if getattr(self, name) > MAX_FACTOR:
                raise ConfigurationError(
                    f"optimizer.{name} is {getattr(self, name):g}; expected at most {MAX_FACTOR:g}. "
                    "Leave it out for the default."
                )
        for name in ("updates_per_batch", "epochs_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"optimizer.{name} is {getattr(self, name)}; expected 0 <= {name} < 1.")

    def make(self, module: nn.Module) -> torch.optim.AdamW:
        """An optimizer over the trainable parameters."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, self.learning_rate, betas, self.epsilon, weight_decay=self.weight_decay)

    def rate_at(self, step: int) -> float:
        """Learning rate of step k = 0, 1, ...

        rate_k = rate · (1 - cos(pi (k + 1) / W)) / 2 for k < W, then rate. "Cosine warm-up" is not spelled out in the
        paper; counting from k + 1 makes the first update a small one and not a wasted one.
        """
        if step >= self.warmup_steps:
            return self.learning_rate
        return self.learning_rate * (1 - math.cos(math.pi * (step + 1) / self.warmup_steps)) / 2
