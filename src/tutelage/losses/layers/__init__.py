"""How far are a student's layers from those that they replace?"""

from tutelage.losses.base import LayerLoss
from tutelage.losses.layers.attention_transfer import AttentionTransfer

LAYER_LOSSES: dict[str, type[LayerLoss]] = {"attention_transfer": AttentionTransfer}

__all__ = ["LAYER_LOSSES", "AttentionTransfer"]
