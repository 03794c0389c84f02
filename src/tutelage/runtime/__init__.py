"""Where does it run?  One process on one device, or several that share each step; the loop does not ask which."""

from __future__ import annotations

import warnings

from tutelage.runtime.local import Learner, LocalRuntime
from tutelage.runtime.processes import Processes, is_first_process, joined

__all__ = ["Learner", "LocalRuntime", "Processes", "is_first_process", "joined", "runtime_for"]


def runtime_for(
    processes: Processes | None, *, device: str, strategy: str, shard_teacher: bool, timeout_seconds: float
) -> LocalRuntime:
    """The runtime of this process: one of several (see `joined`), or the only one.

    Raises:
      ConfigurationError: there is no such device, or fewer devices than processes.
    """
    if processes is None:
        for name, is_set in (("strategy", strategy != "ddp"), ("shard_teacher", shard_teacher)):
            if is_set:
                warnings.warn(
                    f"runtime.{name} has no effect in a single process. Start several with torchrun, or drop it.",
                    stacklevel=2,
                )
        return LocalRuntime(device)
    from tutelage.runtime.distributed import DistributedRuntime  # FSDP takes a second to import

    return DistributedRuntime(
        device=device,
        processes=processes,
        strategy=strategy,
        shards_teacher=shard_teacher,
        timeout_seconds=timeout_seconds,
    )
