"""How is one decode step run?"""

from tutelage.models.steps.base import DecodeStep
from tutelage.models.steps.compiled import CompiledStep
from tutelage.models.steps.eager import EagerStep
from tutelage.models.steps.graphed import GraphedStep

STEPS: dict[str, type[DecodeStep]] = {
    "eager": EagerStep,
    "compiled": CompiledStep,
    "graphed": GraphedStep,
}

__all__ = ["STEPS", "CompiledStep", "DecodeStep", "EagerStep", "GraphedStep"]
