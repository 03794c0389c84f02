"""Do all runs of a comparison read the same inputs, also those that begin after a pause?

The shared inputs are checked before any run starts, and recorded in the comparison's own `fingerprints.json`. A run
that has begun checks its own record as well; one that has not would otherwise begin with the present inputs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tutelage.comparison.plan import PLAN, Plan
from tutelage.config import RunAssembly
from tutelage.config.clock import DATE, dated
from tutelage.config.fingerprints import Inputs
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
    run = RunAssembly(config, asks_teacher=True)
    _ = run.tokenizers  # files of models that are not there are named before any digest is taken
    hashes = run.model_hashes()
    inputs.add(run.data_inputs())
    inputs.add(hashes.inputs())
    now = inputs.to_file(recorded, 0)
    if now != recorded:
        folder.write_fingerprints(now)
