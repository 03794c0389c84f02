"""Low-rank adapters: few weights that learn on a backbone that does not.  LoRA, DoRA and rsLoRA through `peft`.

`peft` puts its layers into the model in place of the linear ones, so the model stays what it was to everybody else: our
own forward calls the linear submodules and sees the adapter without knowing of it. Rollout and update both go through
the unmerged layers, because a merged weight rounds W + BA and so is another distribution than the one that learns.

Left out on purpose: dropout, since a rollout and the loss on it must see the same distribution; adapters of embeddings
and head, which the loss reads as plain weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import ConfigurationError, ModelError, in_short
from tutelage.models.adapter_files import (
    BASE,
    CONFIG,
    WEIGHTS,
    Base,
    check_adapter_weights,
    check_only_low_rank,
    check_same_base,
)
from tutelage.models.reading import read_json, reading

__all__ = [
    "Adapter",
    "AdapterSettings",
    "add_adapter",
    "place_adapter",
    "read_adapter",
]

NAME = "default"  # peft's own
PREFIX = "base_model.model."  # how peft calls the model inside its wrapper; its readers expect it in front of names


@dataclass(frozen=True)
class AdapterSettings:
    """Which adapter learns in place of the model's own weights.

    With W of a linear layer, and B = 0 at the start, so that the student begins as the base itself:
      lora    W + (alpha / rank) B A                                       (arXiv 2106.09685)
      rslora  W + (alpha / sqrt(rank)) B A                                 (arXiv 2312.03732)
      dora    m (W + (alpha / rank) B A) / norm of each of its rows        (arXiv 2402.09353); m learns, too

    Fields:
      method: lora, rslora or dora.
      rank, alpha: PEFT's `r` and `lora_alpha`.
      target_modules: names of linear layers, or "all-linear": every one but the head.
      learning_rate_factor: the adapter's rate as a multiple of the run's; about 10 suits LoRA.
    """

    method: Literal["lora", "rslora", "dora"] = "lora"
    rank: int = 16
    alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"
    learning_rate_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"student.adapter.{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.learning_rate_factor < float("inf"):
            raise ConfigurationError(
                f"student.adapter.learning_rate_factor is {self.learning_rate_factor}; it must be a positive number."
            )


@dataclass(frozen=True)
class Adapter:
    """The adapter in one model. Made by `add_adapter` and `read_adapter`."""

    tuner: Any
    base: Base

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return {name: weight for name, weight in self.tuner.model.named_parameters() if "lora_" in name}

    @property
    def is_dora(self) -> bool:
        """Whether each forward works out norms of whole weights."""
        return bool(self.tuner.peft_config[NAME].use_dora)

    @contextmanager
    def replaced_by(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Other weights in the adapter's place for a while; a graph that was made before is not disturbed."""
        own = {name: weight.data for name, weight in self.weights.items()}
        try:
            self._set(weights)
            yield
        finally:
            self._set(own)

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.data = weights[name]

    @contextmanager
    def weights_fixed(self) -> Iterator[None]:
        """Promise that no weight changes meanwhile: DoRA then works out its norms once and not in every forward."""
        if not self.is_dora:
            yield
            return
        from peft.helpers import DoraCaching

        try:
            with DoraCaching():
                yield
        finally:
            self.tuner.model.train()  # which is when peft forgets what it held
            self.tuner.model.eval()

    def state(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that they have in a file."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.tuner.model, save_embedding_layers=False)
        return {PREFIX + name: weight.detach().contiguous() for name, weight in state.items()}

    def save(self, folder: Path) -> None:
        """Write the adapter alone, as `peft` and `transformers` read it, and which base it belongs to."""
        save_file(self.state(), folder / WEIGHTS)
        config = self.tuner.peft_config[NAME].to_dict()
        config |= {"base_model_name_or_path": self.base.path, "revision": self.base.revision, "inference_mode": True}
        # A set has another order in every process, and a checkpoint must have the same bytes.
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
        noted = asdict(self.base) | {"is_folder": Path(self.base.path).is_dir()}
        (folder / BASE).write_text(json.dumps(noted, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote.

        Raises:
          ModelError: they are those of another base or another kind of adapter, or cannot be read.
        """
        from peft import set_peft_model_state_dict

        check_same_base(folder, self.base)
        with reading("adapter", str(folder)):
            stored = load_file(folder / WEIGHTS)
        check_adapter_weights(stored, folder)
        state = {name.removeprefix(PREFIX): weight for name, weight in stored.items()}
        try:
            found: Any = set_peft_model_state_dict(self.tuner.model, state)
        except (RuntimeError, ValueError, KeyError) as problem:
            raise ModelError(
                f"the adapter in {str(folder)!r} cannot be put on {self.base.path!r}: {in_short(problem)}. "
                "Give the folder of an adapter of that model, with the rank and modules that it was made with."
            ) from problem
        missing = [name for name in found.missing_keys if "lora_" in name]
        if missing or found.unexpected_keys:
            named = (missing or found.unexpected_keys)[0]
            raise ModelError(
                f"the adapter in {str(folder)!r} does not fit {self.base.path!r}: {named} is on one side only. Give "
                "the folder of an adapter with the same method and modules."
            )

    def merged_weights(self) -> dict[str, Tensor]:
        """All weights by their names in the plain model: copies with the adapter merged in, and the others themselves.

        Nothing in this model changes, not even by the rounding of a merge that is undone.
        """
        from peft.tuners.lora import LoraLayer

        adapted: dict[str, Any] = {
            name: part for name, part in self.tuner.model.named_modules() if isinstance(part, LoraLayer)
        }
        weights = {
            name: weight.detach()
            for name, weight in self.tuner.model.named_parameters(remove_duplicate=False)  # a tied head, too
            if not any(name.startswith(f"{place}.") for place in adapted)
        }
        for place, part in adapted.items():
            plain = copy.deepcopy(part)
            plain.merge()
            weights |= {
                f"{place}.{name}": weight.detach() for name, weight in plain.get_base_layer().named_parameters()
            }
        return weights

    def merged(self) -> Any:
        """The model with the adapter in its weights, as a plain `transformers` model; the adapter is gone then."""
        return self.tuner.merge_and_unload(progressbar=False, safe_merge=True)


def add_adapter(module: Any, settings: AdapterSettings, base: Base, seed: int) -> Adapter:
    """A fresh adapter in a model, which computes what it did before; the same weights for the same seed.

    Raises:
      ConfigurationError: the model has no such modules, or they are its head or embeddings.
    """
    from peft import LoraConfig

    targets = settings.target_modules
    config: Any = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.method == "dora",
        use_rslora=settings.method == "rslora",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = _injected(module, config, base)
    if targets == "all-linear" and isinstance(config.target_modules, set):  # every layer's own name by now
        config.target_modules = {name.rpartition(".")[2] for name in config.target_modules}
    return adapter


def read_adapter(module: Any, folder: Path, base: Base) -> Adapter:
    """The adapter of a folder, written by us or by `peft`, in the model that it was made for.

    Raises:
      ModelError: see `Adapter.load`, or it is no LoRA.
    """
    adapter = place_adapter(module, folder, base)
    adapter.load(folder)
    return adapter


def place_adapter(module: Any, folder: Path, base: Base) -> Adapter:
    """An adapter like that of a folder, with other weights.

    Raises:
      ModelError: it is no LoRA.
    """
    from peft import PeftConfig

    read_json(folder / CONFIG)
    with reading("adapter", str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
        kind = str(config.peft_type.value)
    if kind != "LORA":
        raise ModelError(
            f"the adapter in {str(folder)!r} is of the kind {kind}; expected LoRA, DoRA or rsLoRA. "
            "Merge it into its base with the tool that made it."
        )
    check_only_low_rank(config, folder)
    config.inference_mode = False
    try:
        with reading("adapter", str(folder)):
            return _injected(module, config, base)
    except ConfigurationError as problem:
        raise ModelError(
            f"the adapter in {str(folder)!r} does not fit {base.path!r}: {in_short(problem.__cause__ or problem)}. "
            "Give the folder of an adapter of that model."
        ) from problem


def _injected(module: Any, config: Any, base: Base) -> Adapter:
    from peft import LoraModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        adapter = Adapter(LoraModel(module, config, NAME), base)
    except ValueError as problem:
        raise ConfigurationError(
            f"student.adapter.target_modules does not fit {base.path}: {in_short(problem)}. Use "
            "'all-linear', or names such as ['q_proj', 'v_proj']."
        ) from problem
    for weight in adapter.weights.values():  # half precision would lose small updates; not every peft sees to it
        if weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()
    ends = (module.get_input_embeddings(), module.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise ConfigurationError(
            "student.adapter.target_modules names the embeddings or the head, which the loss reads as plain weights. "
            "Leave them out; 'all-linear' does."
        )
    module.eval()  # new layers come in training mode
    return adapter
