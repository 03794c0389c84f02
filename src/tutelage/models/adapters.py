"""Low-rank adapters: few weights that learn on a backbone that does not.  LoRA, DoRA and rsLoRA through `peft`.

`peft` puts its layers into the model in place of the linear ones, so the model stays what it was to everybody else: our
own forward calls the linear submodules and sees the adapter without knowing of it. Rollout and update both go through
the unmerged layers, because a merged weight rounds W + BA and so is another distribution than the one that learns.

Left out on purpose: dropout, since a rollout and the loss on it must see the same distribution; adapters of embeddings
and head, which the loss reads as plain weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.errors import ConfigurationError, ModelError, in_short

__all__ = [
    "Adapter",
    "AdapterSettings",
    "Base",
    "add_adapter",
    "base_of",
    "fingerprint",
    "place_adapter",
    "read_adapter",
]

NAME = "default"  # peft's own
PREFIX = "base_model.model."  # how peft calls the model inside its wrapper; its readers expect it in front of names
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"


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
class Base:
    """The backbone that an adapter was made for.

    Fields:
      path, revision: where it is.
      sha256: of its weights; None = not known (other tools do not note it, and quantised weights are not compared).
    """

    path: str
    revision: str | None = None
    sha256: str | None = None


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
    def held(self) -> Iterator[None]:
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

    def save(self, folder: Path) -> None:
        """Write the adapter alone, as `peft` and `transformers` read it, and which base it belongs to."""
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.tuner.model, save_embedding_layers=False)
        save_file({PREFIX + name: weight.contiguous() for name, weight in state.items()}, folder / WEIGHTS)
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

        _refuse_other_base(folder, self.base)
        try:
            state = {name.removeprefix(PREFIX): weight for name, weight in load_file(folder / WEIGHTS).items()}
            found: Any = set_peft_model_state_dict(self.tuner.model, state)
        except (OSError, SafetensorError, RuntimeError) as problem:
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

    config = PeftConfig.from_pretrained(str(folder))
    if str(config.peft_type.value) != "LORA":
        raise ModelError(
            f"the adapter in {str(folder)!r} is of the kind {config.peft_type.value}; expected LoRA, DoRA or rsLoRA. "
            "Merge it into its base with the tool that made it."
        )
    config.inference_mode = False
    return _injected(module, config, base)


def base_of(path: str) -> Base | None:
    """The base of an adapter's folder; None if the path is no such folder.

    Raises:
      ModelError: the folder does not name its base, or that is a folder which is not there.
    """
    base, was_folder = _named_base(Path(path))
    if base is not None and was_folder and not Path(base.path).is_dir():
        raise ModelError(
            f"the adapter in {path!r} belongs to the model in {base.path!r}, which is not there. Put it back, or write "
            f'where it is now into "path" of {Path(path) / BASE}; relative paths begin in the directory of the command.'
        )
    return base


def _named_base(folder: Path) -> tuple[Base | None, bool]:
    """The base that an adapter's folder names, and whether it was a folder when the adapter was saved.

    A base that was moved is named anew by "path" in base.json, or by `base_model_name_or_path`, as peft has it. Whether
    it is the same one is for its SHA-256 to say.
    """
    if not (folder / CONFIG).is_file() or (folder / "config.json").is_file():
        return None, False
    try:
        config = json.loads((folder / CONFIG).read_text())
        noted = json.loads((folder / BASE).read_text()) if (folder / BASE).is_file() else {}
        named = [name for name in (noted.get("path"), config["base_model_name_or_path"]) if name]
        place = next((name for name in named if Path(name).is_dir()), named[0])
        return Base(place, config.get("revision"), noted.get("sha256")), bool(noted.get("is_folder"))
    except (OSError, ValueError, KeyError, AttributeError, IndexError, TypeError) as problem:
        raise ModelError(
            f"{str(folder)!r} holds an adapter, but its {CONFIG} does not tell of which model. Correct "
            "`base_model_name_or_path` there."
        ) from problem


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights in bfloat16, the same for every type of number that the model may be loaded in."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.named_parameters()):
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _refuse_other_base(folder: Path, base: Base) -> None:
    noted, _ = _named_base(folder)
    if noted is not None and noted.sha256 and base.sha256 and noted.sha256 != base.sha256:
        raise ModelError(
            f"the adapter in {str(folder)!r} was trained on other weights than {base.path!r} has now (SHA-256 "
            f"{noted.sha256[:12]} then, {base.sha256[:12]} now). Restore that model, or start a new run."
        )
