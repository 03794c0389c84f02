"""What makes the answers of a step?  The models here, or another program; or they exist already."""

from tutelage.rollout.engines.base import Engine, Engines
from tutelage.rollout.engines.editing import EditingEngine
from tutelage.rollout.engines.hosted import HostedEngine
from tutelage.rollout.engines.offline import OfflineEngine
from tutelage.rollout.engines.paired import PairedEngine

__all__ = ["EditingEngine", "Engine", "Engines", "HostedEngine", "OfflineEngine", "PairedEngine"]
