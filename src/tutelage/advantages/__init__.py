"""What is a sampled token worth?"""

from tutelage.advantages.base import Advantage
from tutelage.advantages.constant import Constant
from tutelage.advantages.teacher_log_ratio import TeacherLogRatio

ADVANTAGES: dict[str, type[Advantage]] = {
    "constant": Constant,
    "teacher_log_ratio": TeacherLogRatio,
}

__all__ = ["ADVANTAGES", "Advantage", "Constant", "TeacherLogRatio"]
