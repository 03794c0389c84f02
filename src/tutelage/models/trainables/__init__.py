"""What of a model learns?  All of its weights, or an adapter of PEFT's LoRA family."""

from tutelage.models.trainables.adapter_folder import Base, base_of
from tutelage.models.trainables.all_weights import ALL_WEIGHTS, AllWeights, AllWeightsSettings
from tutelage.models.trainables.base import Trainable, TrainableSettings
from tutelage.models.trainables.peft_lora import AdapterSettings, PeftLora

__all__ = [
    "ALL_WEIGHTS",
    "TRAINABLES",
    "AdapterSettings",
    "AllWeights",
    "AllWeightsSettings",
    "Base",
    "PeftLora",
    "Trainable",
    "TrainableSettings",
    "base_of",
]

TRAINABLES: dict[str, type[TrainableSettings]] = {"all_weights": AllWeightsSettings, "lora": AdapterSettings}
