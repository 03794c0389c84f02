"""Low-rank adapters: few weights that learn on a backbone that does not.  LoRA, DoRA and rsLoRA through `peft`.

`peft` puts its layers into the model in place of the linear ones, so nothing else has to change: our own forward calls
the linear submodules, whatever they are. Rollout and update both go through the unmerged layers, because a merged
weight rounds W + BA, and so gives another distribution than the one that learns.

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
from typing import Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import ConfigurationError, ModelError, in_short
from tutelage.models.quantised import is_quantised
from tutelage.models.reading import read_json, reading
from tutelage.models.trainables.adapter_folder import BASE, CONFIG, WEIGHTS, Base, check_same_base
from tutelage.models.trainables.base import Trainable, TrainableSettings, not_as_saved
from tutelage.models.weight_check import is_plain_float

__all__ = ["AdapterSettings", "PeftLora"]

NAME = "default"  # peft's own
PREFIX = "base_model.model."  # how peft calls the model inside its wrapper; its readers expect it in front of names
MARK = "lora_"  # in the names of an adapter's weights, and of no others
MAX_RANK = 2**16

# Settings of peft under which an adapter is more than low-rank differences of linear layers.
BEYOND_LOW_RANK = ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # ways to begin that put other weights into the base


class PeftLora(Trainable):
    """An adapter in one model. Made by `AdapterSettings.put_on`, or from a folder by `read` and `like`.

    Fields:
      tuner: peft's own wrapper.
      base: the backbone that it belongs to.
    Raises:
      ConfigurationError: the model has no such modules, or they are its head or embeddings.
    """

    changes_backbone: ClassVar[bool] = False

    def __init__(self, module: Any, config: Any, base: Base) -> None:
        from peft import LoraModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.base = base
        try:
            self.tuner: Any = LoraModel(module, config, NAME)
        except ValueError as problem:
            raise ConfigurationError(
                f"student.adapter.target_modules does not fit {base.path}: {in_short(problem)}. Use "
                "'all-linear', or names such as ['q_proj', 'v_proj']."
            ) from problem
        super().__init__(self.tuner.model)
        for weight in self.parameters().values():  # half precision would lose small updates; not every peft sees to it
            if weight.dtype in (torch.bfloat16, torch.float16):
                weight.data = weight.data.float()
        ends = (module.get_input_embeddings(), module.get_output_embeddings())
        if any(isinstance(end, BaseTunerLayer) for end in ends):
            raise ConfigurationError(
                "student.adapter.target_modules names the embeddings or the head, which the loss reads as plain "
                "weights. Leave them out; 'all-linear' does."
            )
        module.eval()  # new layers come in training mode

    @classmethod
    def read(cls, module: Any, folder: Path, base: Base) -> Self:
        """The adapter of a folder, written by us or by `peft`, in the model that it was made for.

        Raises:
          ModelError: see `load`, or it is no LoRA.
        """
        adapter = cls.like(module, folder, base)
        adapter.load(folder)
        return adapter

    @classmethod
    def like(cls, module: Any, folder: Path, base: Base) -> Self:
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
        _check_only_low_rank(config, folder)
        config.inference_mode = False
        try:
            with reading("adapter", str(folder)):
                return cls(module, config, base)
        except ConfigurationError as problem:
            raise ModelError(
                f"the adapter in {str(folder)!r} does not fit {base.path!r}: {in_short(problem.__cause__ or problem)}. "
                "Give the folder of an adapter of that model."
            ) from problem

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.module.named_parameters() if MARK in name}

    @property
    def is_dora(self) -> bool:
        """Whether each forward computes norms of whole weights."""
        return bool(self.tuner.peft_config[NAME].use_dora)

    @property
    def only_multiplies(self) -> bool:
        return not self.is_dora

    @contextmanager
    def weights_fixed(self) -> Iterator[None]:
        """Promise that no weight changes inside: DoRA then computes its norms once and not in every forward."""
        if not self.is_dora:
            yield
            return
        from peft.helpers import DoraCaching

        try:
            with DoraCaching():
                yield
        finally:
            self.module.train()  # then peft drops the norms
            self.module.eval()

    @contextmanager
    def replaced_by(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """See `Trainable.replaced_by`; DoRA's norms that are kept are dropped, and made anew afterwards."""
        with super().replaced_by(state):
            if not self.is_dora:
                yield
                return
            from peft.helpers import DoraCaching

            with DoraCaching(enabled=False):
                yield

    def obstacle(self, switch: str) -> str | None:
        if not (self.is_dora and switch in ("rollout.compile", "runtime.compile")):
            return None
        return (
            f"has a DoRA adapter, whose norms torch.compile cannot follow. Set {switch} = false, or "
            "student.adapter.method = 'lora'."
        )

    def save(self, folder: Path, *, with_weights: bool = True) -> None:
        """Write the adapter alone, as `peft` and `transformers` read it, and which base it belongs to.

        Beside it how the model generates, which the base's folder need not say as the student was trained.
        """
        save_file(self._to_file(), folder / WEIGHTS)
        config = self.tuner.peft_config[NAME].to_dict()
        config |= {"base_model_name_or_path": self.base.path, "revision": self.base.revision, "inference_mode": True}
        # A set has another order in every process, and a checkpoint must have the same bytes.
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        (folder / CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
        noted = asdict(self.base) | {"is_folder": Path(self.base.path).is_dir()}
        (folder / BASE).write_text(json.dumps(noted, indent=2) + "\n")
        self.module.generation_config.save_pretrained(folder)

    def _to_file(self) -> dict[str, Tensor]:
        """The adapter's weights under the names that they have in a file."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.module, save_embedding_layers=False)
        return {PREFIX + name: weight.detach().contiguous() for name, weight in state.items()}

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote.

        Raises:
          ModelError: they are those of another base or another kind of adapter, or cannot be read.
        """
        from peft import set_peft_model_state_dict

        check_same_base(folder, self.base)
        with reading("adapter", str(folder)):
            stored = load_file(folder / WEIGHTS)
        _check_stored(stored, folder)
        state = {name.removeprefix(PREFIX): weight for name, weight in stored.items()}
        try:
            found: Any = set_peft_model_state_dict(self.module, state)
        except (RuntimeError, ValueError, KeyError) as problem:
            raise ModelError(
                f"the adapter in {str(folder)!r} cannot be put on {self.base.path!r}: {in_short(problem)}. "
                "Give the folder of an adapter of that model, with the rank and modules that it was made with."
            ) from problem
        missing = [name for name in found.missing_keys if MARK in name]
        if missing or found.unexpected_keys:
            named = (missing or found.unexpected_keys)[0]
            raise ModelError(
                f"the adapter in {str(folder)!r} does not fit {self.base.path!r}: {named} is on one side only. Give "
                "the folder of an adapter with the same method and modules."
            )

    def read_back(self, folder: Path, name: str, *, with_weights: bool = True) -> Any | None:
        """The adapter as its folder describes it, on the base in memory; on a base in 4 bits, only the files count."""
        with reading("adapter", str(folder)):
            written = load_file(folder / WEIGHTS)
        ours = self._to_file()
        if written.keys() != ours.keys() or any(
            written[key].dtype != own.dtype or not torch.equal(written[key], own.cpu()) for key, own in ours.items()
        ):
            raise ModelError(
                f"{folder / WEIGHTS} does not hold the adapter in memory. Look for a fault of the disk, and keep the "
                "run."
            )
        if is_quantised(self.module):
            return None
        with torch.device("meta"):
            twin = type(self.module)(self.module.config)
            self.like(twin, folder, self.base)
        state, shapes = self.module.state_dict(), twin.state_dict()
        for key in shapes.keys() | state.keys():
            if key not in shapes or key not in state or shapes[key].shape != state[key].shape:
                raise not_as_saved(name, f"{key} on one side only, or in another shape")
        twin.load_state_dict(state, assign=True)
        buffers = dict(self.module.named_buffers())
        for key, buffer in list(twin.named_buffers()):
            if buffer.is_meta:  # the base's, which is not written
                owner, _, last = key.rpartition(".")
                twin.get_submodule(owner)._buffers[last] = buffers[key]
        return twin.eval()

    def merged_weights(self) -> dict[str, Tensor]:
        """Copies with the adapter merged in, and the others themselves; not even the rounding of a merge stays here."""
        from peft.tuners.lora import LoraLayer

        adapted: dict[str, Any] = {
            name: part for name, part in self.module.named_modules() if isinstance(part, LoraLayer)
        }
        weights = {
            name: weight.detach()
            for name, weight in self.module.named_parameters(remove_duplicate=False)  # a tied head, too
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
        return self.tuner.merge_and_unload(progressbar=False, safe_merge=True)


@dataclass(frozen=True)
class AdapterSettings(TrainableSettings):
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

    kind: ClassVar[type[Trainable]] = PeftLora

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"student.adapter.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.rank > MAX_RANK:
            raise ConfigurationError(
                f"student.adapter.rank is {self.rank}; expected at most {MAX_RANK}, and 8 to 256 is usual. Lower it."
            )
        if not 0 < self.learning_rate_factor < float("inf"):
            raise ConfigurationError(
                f"student.adapter.learning_rate_factor is {self.learning_rate_factor}; it must be a positive number."
            )

    def put_on(self, module: Any, base: Base, seed: int) -> PeftLora:
        from peft import LoraConfig

        config: Any = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules),
            use_dora=self.method == "dora",
            use_rslora=self.method == "rslora",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapter = PeftLora(module, config, base)
        if self.target_modules == "all-linear" and isinstance(config.target_modules, set):  # layers by their full names
            config.target_modules = {name.rpartition(".")[2] for name in config.target_modules}
        return adapter


def _check_only_low_rank(config: Any, folder: Path) -> None:
    """Refuse an adapter that is more than low-rank differences of linear layers; the rest would be lost."""
    more = [f"{name} = {getattr(config, name)!r}" for name in BEYOND_LOW_RANK if getattr(config, name, None)]
    if config.bias != "none":
        more.append(f"bias = {config.bias!r}")
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(CHANGES_BASE):
        more.append(f"init_lora_weights = {config.init_lora_weights!r}")
    if more:
        raise ModelError(
            f"the adapter in {str(folder)!r} has {', '.join(more)}, so it is not low-rank differences of linear layers "
            "alone. Merge it into its base with the tool that made it, and give the merged model."
        )


def _check_stored(stored: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse what is no weight of an adapter, and numbers that cannot be one."""
    for name, weight in stored.items():
        if MARK not in name:
            problem = f"holds {name}, which is no weight of a LoRA and would replace one of the base"
        elif not is_plain_float(weight):
            problem = f"holds {name} as {str(weight.dtype).removeprefix('torch.')}; floating-point numbers are expected"
        elif not bool(weight.isfinite().all()):
            problem = f"has numbers in {name} that are NaN or infinite"
        else:
            continue
        raise ModelError(
            f"the adapter in {str(folder)!r} {problem}. Restore the folder from its source, or give an earlier "
            "checkpoint."
        )
