"""How is one decode step run?"""

from tutelage.models.steps.base import DecodeStep
from tutelage.models.steps.compiled import CompiledStep
from tutelage.models.steps.eager import EagerStep

STEPS: dict[str, type[DecodeStep]] = {
    "eager": EagerStep,
    "compiled": CompiledStep,
}

__all__ = ["STEPS", "CompiledStep", "DecodeStep", "EagerStep"]
