"""Models that are sharded over the processes (FSDP2): the student while it learns, and a teacher too large for one GPU.

The student: each process keeps a part of every parameter, of its gradient and of AdamW's moments. A layer's parameters
are gathered while the layer is computed, those of the embedding and the head during a whole micro-batch. Gradients are
reduced to their sum, not their mean. Decoding reads every weight once per token, so it uses a whole copy of them, which
is refreshed once per update, and is also what is evaluated and saved.

The teacher is not trained: no gradient, no moments. If it is sharded, its layers are gathered in every forward, so all
processes run its forwards at the same time, whether or not they have something to read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from tutelage.errors import ModelError, RunInterrupted
from tutelage.models import LanguageModel
from tutelage.runtime.local import Learner, gathered
from tutelage.runtime.processes import Processes

__all__ = ["JointReading", "ShardedLearner", "shard_frozen"]


class _MicroBatch(nn.Module):
    """The root of a sharded student: embedding and head are gathered while it runs a loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


@dataclass(frozen=True)
class ShardedLearner(Learner):
    """A sharded student.

    Fields:
      student: the whole copy, which decodes.
      root: the sharded module through which every pass goes.
      processes: the processes that share the student.
    """

    student: LanguageModel
    root: Any
    processes: Processes

    @classmethod
    def of(cls, student: LanguageModel, mesh: Any, processes: Processes) -> ShardedLearner:
        """Shard a copy of the student. The student itself is no longer trained."""
        trainable = copy.deepcopy(student.trainable)
        module = trainable.module
        for layer in _layers(module, student.name):
            fully_shard(layer, mesh=mesh)
        root: Any = fully_shard(_MicroBatch(module), mesh=mesh, reshard_after_forward=False)
        sharded: list[Any] = [inner for inner in root.modules() if hasattr(inner, "set_gradient_divide_factor")]
        for inner in sharded:
            inner.set_gradient_divide_factor(1.0)
            inner.set_force_sum_reduction_for_comms(True)
        student.module.requires_grad_(False)
        # A layer is gathered when its module is called, which our own forward does not do.
        model = replace(student, module=module, trainable=trainable, fast_forward=False, compile=False)
        return cls(model, student, root, processes)

    def backward(self, passes: Sequence[Callable[[], Tensor]]) -> None:
        """Add the gradients of all processes' passes; a process with fewer passes runs empty ones to stay in step."""
        most = max(self.processes.gather(len(passes)))
        idle = [self._nothing] * (most - len(passes))
        with self.processes.waiting():
            for loss in [*passes, *idle]:
                self.root(loss).backward()

    def _nothing(self) -> Tensor:
        """A loss of 0 that depends on every parameter."""
        return 0.0 * self.model.logits(self.model.hidden_packed([[self.model.known_ids[0]]])).sum()

    @torch.no_grad()
    def publish(self) -> None:
        whole = dict(self.student.module.named_parameters())
        with self.processes.waiting():
            for name, part in self.model.module.named_parameters():
                if part.requires_grad:
                    whole[name].copy_(part.full_tensor())

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimizer over the whole student, on the CPU. On other ranks than 0 it is empty."""
        state = optimizer.state_dict()
        whole: dict[int, dict[str, Any]] = {}
        with self.processes.waiting():
            for place, moments in state["state"].items():
                found = {name: gathered(value) for name, value in moments.items()}
                if self.processes.rank == 0:
                    whole[place] = {name: _on_cpu(value) for name, value in found.items()}
        return {**state, "state": whole}

    def load_moments(self, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any]) -> None:
        parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
        parts = {
            place: {name: _part_like(parameters[place], value) for name, value in whole.items()}
            for place, whole in moments["state"].items()
        }
        optimizer.load_state_dict({**moments, "state": parts})


def shard_frozen(model: LanguageModel, mesh: Any) -> LanguageModel:
    """Shard the layers of a model that is on the CPU, and move the rest to the mesh's device; nothing is trained."""
    module = model.module.requires_grad_(False)
    layers = _layers(module, model.name)
    sharded = {id(p) for layer in layers for p in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    rest = [p for p in module.parameters() if id(p) not in sharded and not hasattr(p, "full_tensor")]
    is_cuda = mesh.device_type == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")
    for whole in rest:
        whole.data = whole.data.to(device)
    for inner in module.modules():
        for name, buffer in inner._buffers.items():
            inner._buffers[name] = None if buffer is None else buffer.to(device)
    # The root gathers nothing itself. It makes FSDP fetch the next layer while this one is computed.
    fully_shard(module.base_model, mesh=mesh, ignored_params=set(rest))
    return replace(model, module=module, fast_forward=False)


class JointReading:
    """Runs the forwards of a sharded teacher in all processes at the same time.

    How many forwards a process needs depends on its answers. Before each one, the processes exchange which of them need
    it. A process that has finished its share takes part in the others' forwards until no process needs one.
    """

    def __init__(self, teacher: LanguageModel, processes: Processes) -> None:
        self.teacher, self.processes = teacher, processes
        self._attends = False
        teacher.module.base_model.register_forward_pre_hook(self._before_a_forward, prepend=True)

    def _before_a_forward(self, *_called: Any) -> None:
        if self._attends:
            return
        heartbeat = self.processes.heartbeat
        _num_reading, num_asked = self.processes.exchange([1, int(heartbeat.stop_reason is not None)])
        if num_asked:
            raise RunInterrupted("a process of this run was asked to stop")

    @torch.no_grad()
    def attend(self) -> None:
        """Take part in the others' forwards until all have finished their shares."""
        self._attends = True
        try:
            while True:
                asked = int(self.processes.heartbeat.stop_reason is not None)
                num_reading, num_asked = self.processes.exchange([0, asked], patiently=True)
                if not num_reading:
                    return
                if not num_asked:  # otherwise the readers leave their shares, and call `attend` too
                    token = torch.zeros(1, 1, dtype=torch.int64, device=self.teacher.device)
                    self.teacher.module.base_model(input_ids=token, use_cache=False)
        finally:
            self._attends = False


def _layers(module: Any, name: str) -> Iterable[nn.Module]:
    layers = getattr(module.base_model, "layers", None)
    if layers is None:
        raise ModelError(
            f"{name} is a {type(module).__name__} without a list of layers, so it cannot be sharded. Use "
            "runtime.strategy = 'ddp' and runtime.shard_teacher = false."
        )
    found: Iterable[nn.Module] = layers
    return found


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _part_like(parameter: Any, value: Any) -> Any:
    """This process's part of a whole moment. Step counts are returned as they are."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    here = value.to(parameter.device)
    return distribute_tensor(here, parameter.device_mesh, parameter.placements, src_data_rank=None)
