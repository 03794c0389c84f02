"""In which form are recurrent layers computed? No weights are needed."""

from __future__ import annotations

from tutelage.config import RunAssembly
from tutelage.errors import TutelageError
from tutelage.models import LanguageModel, missing_kernels
from tutelage.preflight.finding import Finding, Verdict

__all__ = ["form", "has_recurrent_layers"]


def has_recurrent_layers(run: RunAssembly) -> bool:
    """A model of the run has some; no if that cannot be seen, since what is wrong is reported elsewhere."""
    try:
        return bool(_recurrent(run))
    except (TutelageError, OSError):
        return False


def form(run: RunAssembly) -> Finding:
    """How many layers of each model have a state, and whether installed kernels compute them."""
    models = _recurrent(run)
    shown = ", ".join(
        f"{len(model.recurrent_layers.by_layer)} of {model.config.num_hidden_layers} layers of the {name}"
        for name, model in models.items()
    )
    shown += "; sequences of an update are padded"
    if not any(model.recurrent_layers.may_use_kernels for model in models.values()):
        return Finding(Verdict.ok, f"{shown}, in plain PyTorch, for which there are no kernels")
    if not (missing := missing_kernels()):
        return Finding(Verdict.ok, f"{shown}, with the kernels of flash-linear-attention and causal-conv1d")
    is_slow = run.runtime.device.startswith("cuda")
    return Finding(
        Verdict.warning if is_slow else Verdict.ok,
        f"{shown}, in plain PyTorch: {' and '.join(missing)} cannot be imported",
        f"The same numbers come faster after pip install {' '.join(missing)}." if is_slow else "",
    )


def _recurrent(run: RunAssembly) -> dict[str, LanguageModel]:
    return {name: model for name, model in run.meta_models.items() if model.recurrent_layers}
