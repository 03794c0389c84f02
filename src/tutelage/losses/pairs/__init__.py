"""How much more probable is a preferred answer than a rejected one?"""

from tutelage.losses.base import PairLoss
from tutelage.losses.pairs.dpo import DPO

PAIR_LOSSES: dict[str, type[PairLoss]] = {"dpo": DPO}

__all__ = ["DPO", "PAIR_LOSSES"]
