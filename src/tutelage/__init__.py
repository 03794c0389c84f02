"""Train a small language model on its own rollouts against a stronger one (on-policy distillation)."""

__version__ = "0.1.0"

__all__ = ["__version__"]
