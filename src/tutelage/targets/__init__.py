"""What should the student imitate?  A pure function from the models' distributions to one.

To add one: a file beside the others, a line in `TARGETS`, a line in `tests/contracts/test_targets.py`.
"""

from tutelage.targets.base import TargetRule
from tutelage.targets.bridge import Bridge
from tutelage.targets.extrapolated import Extrapolated
from tutelage.targets.proximal import Proximal
from tutelage.targets.self_past import SelfPast
from tutelage.targets.teacher import Teacher

TARGETS: dict[str, type[TargetRule]] = {
    "teacher": Teacher,
    "bridge": Bridge,
    "extrapolated": Extrapolated,
    "proximal": Proximal,
    "self_past": SelfPast,
}

__all__ = ["TARGETS", "Bridge", "Extrapolated", "Proximal", "SelfPast", "TargetRule", "Teacher"]
