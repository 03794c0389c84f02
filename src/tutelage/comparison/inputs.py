"""Do all runs of a comparison read the same inputs, also those that begin after a pause?

The shared inputs are checked before any run starts, and recorded in the comparison's own `fingerprints.json`. A run
that has begun checks its own record as well; one that has not would otherwise begin with the present inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tutelage.comparison.plan import PLAN, Plan
from tutelage.config import build_evaluation_sets, load_route_tokenizers, load_tokenizers, read_prompts
from tutelage.config.clock import DATE, dated, template_clock
from tutelage.config.fingerprints import Inputs, ModelHashes, data_inputs
from tutelage.runtime import LocalRuntime
from tutelage.training import RunFolder

__all__ = ["check_inputs"]


def check_inputs(plan: Plan, accept: Sequence[str]) -> None:
    """Compare what the runs will read with what the comparison began with; its plan is written.

    Args:
      accept: names of `fingerprints.INPUTS` that may have changed.
    Raises:
      ConfigurationError: something changed that is not in `accept`.
      DataError, ModelError: prompts, problems or models cannot be used.
    """
    folder = RunFolder(plan.folder)
    recorded = folder.read_fingerprints() or {}
    config = dated(plan.methods[0].config, json.loads((plan.folder / PLAN).read_text()).get(DATE))
    inputs = Inputs(LocalRuntime("cpu"), recorded.get("inputs"), accept)
    student, teacher = load_tokenizers(config)
    hashes = ModelHashes(config, with_teacher=True)
    routes, clock = load_route_tokenizers(config), template_clock(config.data)
    prompts = read_prompts(config.data, student, teacher, routes, clock)
    sets = build_evaluation_sets(config.evaluation.sets, config.data, student, clock)
    inputs.add(data_inputs(config, prompts, sets, {"student": student, "teacher": teacher, **routes}))
    inputs.add(hashes.inputs())
    now = inputs.to_file(recorded, 0)
    if now != recorded:
        folder.write_fingerprints(now)
