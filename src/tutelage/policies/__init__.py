"""Who picks the next token?

A policy turns the next-token distributions of student and teacher into the one that rollouts are drawn from. To add
one: a file beside the others, a line in `POLICIES`, a line in `tests/contracts/test_policies.py`.
"""

from tutelage.policies.base import Behaviour, Policy, Softmax
from tutelage.policies.fixed_blend import FixedBlend
from tutelage.policies.interleaved import Interleaved
from tutelage.policies.intervention import Intervention
from tutelage.policies.mixture import Mixture
from tutelage.policies.offline import Offline
from tutelage.policies.student import Student
from tutelage.policies.teacher import Teacher
from tutelage.policies.teacher_prefix import TeacherPrefix
from tutelage.policies.temperature import Temperature
from tutelage.policies.trust_region import TrustRegion

__all__ = [
    "POLICIES",
    "Behaviour",
    "FixedBlend",
    "Interleaved",
    "Intervention",
    "Mixture",
    "Offline",
    "Policy",
    "Proposal",
    "Softmax",
    "Student",
    "Teacher",
    "TeacherPrefix",
    "Temperature",
    "TrustRegion",
]

Proposal = Behaviour  # for policies written elsewhere

POLICIES: dict[str, type[Policy]] = {
    "student": Student,
    "teacher": Teacher,
    "trust_region": TrustRegion,
    "fixed_blend": FixedBlend,
    "mixture": Mixture,
    "interleaved": Interleaved,
    "temperature": Temperature,
    "teacher_prefix": TeacherPrefix,
    "intervention": Intervention,
    "offline": Offline,
    "given": Offline,  # its name in older run files
}
