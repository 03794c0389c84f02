"""A student and a teacher that share a vocabulary and end their answers differently."""

from __future__ import annotations

from tests.conftest import make_model
from tutelage.models import ModelSet


def pair() -> ModelSet:
    """Two random models of 20 tokens; each of two stop ids ends an answer of the teacher."""
    return ModelSet.of(
        make_model("qwen3", vocab_size=20, stop_ids=7, seed=1),
        make_model("qwen3", vocab_size=20, stop_ids=[8, 7], seed=2),
    )
