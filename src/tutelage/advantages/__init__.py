"""What is a sampled token worth?"""

from tutelage.advantages.base import Advantage
from tutelage.advantages.constant import Constant, ConstantByEntropy
from tutelage.advantages.group_reward import GROUP_REWARD, GroupReward
from tutelage.advantages.normalised_log_ratio import NormalisedLogRatio
from tutelage.advantages.teacher_log_ratio import TeacherLogRatio
from tutelage.advantages.whitened_return import WhitenedReturn
from tutelage.advantages.wrappers import Focal, Sign, Sum, TeacherWeighted

ADVANTAGES: dict[str, type[Advantage]] = {
    "constant": Constant,
    "constant_by_entropy": ConstantByEntropy,
    "teacher_log_ratio": TeacherLogRatio,
    "normalised_log_ratio": NormalisedLogRatio,
    "group_reward": GroupReward,
    "whitened_return": WhitenedReturn,
    "focal": Focal,
    "teacher_weighted": TeacherWeighted,
    "sign": Sign,
    "sum": Sum,
}

__all__ = [
    "ADVANTAGES",
    "GROUP_REWARD",
    "Advantage",
    "Constant",
    "ConstantByEntropy",
    "Focal",
    "GroupReward",
    "NormalisedLogRatio",
    "Sign",
    "Sum",
    "TeacherLogRatio",
    "TeacherWeighted",
    "WhitenedReturn",
]
