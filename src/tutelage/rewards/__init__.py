"""What is an answer worth?"""

from tutelage.rewards.base import Answers, Judge, Reward, Setting
from tutelage.rewards.combinations import COMBINATIONS, Combination, Ratings
from tutelage.rewards.length import Length, Overlong
from tutelage.rewards.rating import COMBINED, VERDICT, Rating, check_rewards
from tutelage.rewards.verdict import Correct

REWARDS: dict[str, type[Reward]] = {
    "correct": Correct,
    "length": Length,
    "overlong": Overlong,
}

__all__ = [
    "COMBINATIONS",
    "COMBINED",
    "REWARDS",
    "VERDICT",
    "Answers",
    "Combination",
    "Correct",
    "Judge",
    "Length",
    "Overlong",
    "Rating",
    "Ratings",
    "Reward",
    "Setting",
    "check_rewards",
]
