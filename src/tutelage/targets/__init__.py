"""What should the student imitate?  A pure function from both models' distributions to one."""

from tutelage.targets.base import TargetRule
from tutelage.targets.teacher import Teacher

TARGETS: dict[str, type[TargetRule]] = {
    "teacher": Teacher,
}

__all__ = ["TARGETS", "TargetRule", "Teacher"]
