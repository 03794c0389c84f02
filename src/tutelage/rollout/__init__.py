"""How do tokens get produced?  The paired engine samples from any policy; scoring lets a teacher read what exists."""

from tutelage.rollout.paired import PairedEngine
from tutelage.rollout.scoring import score
from tutelage.rollout.streams import derive_seed, uniforms

__all__ = ["PairedEngine", "derive_seed", "score", "uniforms"]
