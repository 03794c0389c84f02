"""What is an answer worth?"""

from tutelage.rewards.base import Answers, Judge, JudgeMemory, Reward, RewardWarning, Setting
from tutelage.rewards.combinations import COMBINATIONS, Combination, Ratings
from tutelage.rewards.length import Length, Overlong
from tutelage.rewards.rating import COMBINED, VERDICT, Rating, check_rewards
from tutelage.rewards.reward_model import RewardModel
from tutelage.rewards.verdict import Correct
from tutelage.rewards.worker import Format, Function

REWARDS: dict[str, type[Reward]] = {
    "correct": Correct,
    "format": Format,
    "function": Function,
    "length": Length,
    "overlong": Overlong,
    "reward_model": RewardModel,
}

__all__ = [
    "COMBINATIONS",
    "COMBINED",
    "REWARDS",
    "VERDICT",
    "Answers",
    "Combination",
    "Correct",
    "Format",
    "Function",
    "Judge",
    "JudgeMemory",
    "Length",
    "Overlong",
    "Rating",
    "Ratings",
    "Reward",
    "RewardModel",
    "RewardWarning",
    "Setting",
    "check_rewards",
]
