"""What of a model learns?  One interface for all of its weights, some of them, and others that are put into it.

The defaults are those of a member that is a part of the model's own weights: it says which `parameters` it has, and its
folders are plain model directories. A member that puts weights into the model sets `changes_backbone` to False, and
says itself how it is written, read, compared and merged; `PeftLora` is an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tutelage.errors import ModelError
from tutelage.models.reading import reading
from tutelage.models.trainables.adapter_folder import Base
from tutelage.models.weight_check import check_report, quietly

__all__ = ["Trainable", "TrainableSettings", "not_as_saved"]


class Trainable(ABC):
    """What learns in one model.

    Fields:
      module: the `transformers` model.
      changes_backbone: weights of the model itself learn. A checkpoint is then a whole model, and a reference that is
        the student as it was is a copy. Otherwise a checkpoint holds what learns and names its base, and such a
        reference is the same backbone.
    """

    changes_backbone: ClassVar[bool] = True

    def __init__(self, module: Any) -> None:
        self.module = module

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by its names in the module, in the module's order."""

    def enable_grad(self) -> None:
        """Let a gradient reach `parameters`, and nothing else."""
        self.module.requires_grad_(False)
        for weight in self.parameters().values():
            weight.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """The values of what learns, by name: the tensors themselves, which change when the model learns."""
        return {name: weight.data for name, weight in self.parameters().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values that `state` gave.

        Raises:
          KeyError, RuntimeError: they are those of something else.
        """
        for name, weight in self.parameters().items():
            weight.data.copy_(state[name])

    @contextmanager
    def replaced_by(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values in the place of these for a while; a graph that was made before is not disturbed.

        A graph keeps the tensors that it was made with, and these are put aside and not written to. Nor is what is kept
        of these, as inside `weights_fixed`, taken for the others'.
        """
        own = {name: weight.data for name, weight in self.parameters().items()}
        keeps_casts = torch.is_autocast_cache_enabled()
        try:
            # Autocast knows a weight that it has cast by its object, whatever the values.
            torch.set_autocast_cache_enabled(False)
            self._put_in_place(state)
            yield
        finally:
            self._put_in_place(own)
            torch.set_autocast_cache_enabled(keeps_casts)

    def _put_in_place(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.parameters().items():
            weight.data = state[name]

    @property
    def only_multiplies(self) -> bool:
        """Whether weights are factors of products and nothing else is made of them.

        A forward may then use rounded copies where products are rounded, and be captured as a whole.
        """
        return True

    def weights_fixed(self) -> AbstractContextManager[Any]:
        """Promise that no weight changes inside, so that what is computed from weights may be kept."""
        return nullcontext()

    def obstacle(self, switch: str) -> str | None:
        """Why a switch of the run file cannot be on, such as "runtime.compile"; None = it can.

        Returns:
          the end of a sentence that begins with "runtime.compile is on, but the model ...", and what to do.
        """
        return None

    def merged_weights(self) -> dict[str, Tensor]:
        """All weights by their names in the plain model, with what was learned in them; nothing here changes.

        A weight under two names is there twice; one that nothing is merged into is the model's own tensor.
        """
        return dict(self.module.state_dict())

    def merged(self) -> Any:
        """The model as a plain `transformers` model with `merged_weights`; this one is used up.

        Raises:
          ValueError: merging gives numbers that are not finite.
        """
        return self.module

    def save(self, folder: Path, *, with_weights: bool = True) -> None:
        """Write a folder that opens as the model, also for `load`.

        Args:
          with_weights: False = only what stands beside them, to try whether it can be written; small weights may be
            written all the same.
        """
        self.module.save_pretrained(folder, state_dict=None if with_weights else {})

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote.

        Raises:
          ModelError: they cannot be read, or are those of another model.
        """
        self.module.load_state_dict(self._written(folder, with_weights=True).state_dict())

    def read_back(self, folder: Path, name: str, *, with_weights: bool = True) -> Any | None:
        """Compare the folder that `save` wrote with what is in memory.

        Args:
          name: of the model, for messages.
          with_weights: whether they were written.
        Returns:
          a second model, made from the written configuration, that has this one's weights and takes no memory for them;
          None if there can be none.
        Raises:
          ModelError: names what differs.
        """
        twin, ours = self._written(folder, with_weights=with_weights), self.module.state_dict()
        theirs = twin.state_dict()
        for key in sorted(theirs.keys() | ours.keys()):
            if key not in theirs or key not in ours:
                raise not_as_saved(name, f"{key} on one side only")
            own, written = ours[key], theirs[key]
            if (own.dtype, own.shape) != (written.dtype, written.shape):
                raise not_as_saved(name, f"{key} as {written.dtype} {list(written.shape)}")
            if with_weights and not torch.equal(written, own.to(written.device)):
                raise not_as_saved(name, f"other numbers in {key}")
        twin.load_state_dict(ours, assign=True)
        return twin.to(next(self.module.parameters()).device).eval()

    def _written(self, folder: Path, *, with_weights: bool) -> Any:
        """The model of a folder that `save` wrote; without weights, one number stands under every shape."""
        module = self.module
        settings: dict[str, Any] = {
            "dtype": module.dtype,
            "attn_implementation": module.config._attn_implementation,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }
        with reading("model", str(folder)), quietly():
            if with_weights:
                twin, report = type(module).from_pretrained(folder, use_safetensors=True, **settings)
            else:  # so that nothing is allocated
                state = module.state_dict()
                shapes = {key: torch.zeros(1, dtype=weight.dtype).expand(weight.shape) for key, weight in state.items()}
                config = type(module.config).from_pretrained(folder)
                twin, report = type(module).from_pretrained(None, config=config, state_dict=shapes, **settings)
        check_report(report, str(folder))
        return twin


class TrainableSettings(ABC):
    """What is to learn in a model, as frozen dataclasses: the members of TRAINABLES.

    Fields:
      kind: what it becomes in a model.
      learning_rate_factor: its learning rate as a multiple of the run's.
    """

    kind: ClassVar[type[Trainable]]
    learning_rate_factor: float = 1.0

    def put_on(self, module: Any, base: Base, seed: int) -> Trainable:
        """Make it learn in a model, which computes what it did before; the same weights for the same seed.

        Args:
          base: where the model comes from.
        Raises:
          ConfigurationError: the model has nothing that could learn in this way.
        """
        return self.kind(module)


def not_as_saved(name: str, what: str) -> ModelError:
    """The error for a folder that is not the model that was written into it."""
    return ModelError(
        f"{name} would not be the same model once saved: read back, the folder has {what}. Save the original "
        "with your version of transformers (`save_pretrained`) and train from that copy, or use another version."
    )
