"""How much memory does a training step take?  From the models' shapes alone, before any weight is loaded.

Weights, gradients, AdamW's two moments and full caches are exact. What backward needs is counted as our own forward
leaves it behind (`activation_bytes`); the module's own forward leaves about as much. Logits and the gradients that the
loss holds are those of the form that the loss will be computed in. benchmarks/step_memory.py compares the sum with what
a step really takes.

Axis letters: N tokens, E width of the stream between the layers, Q all query heads, K all key heads, I inner width of
the feed-forward part, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.config.models import as_it_starts, is_served, load_meta_model, other_models
from tutelage.config.rewards import RatingPlan
from tutelage.config.schema import RunConfig
from tutelage.errors import ConfigurationError
from tutelage.kernels import Tiling
from tutelage.losses import FULL_VOCABULARY
from tutelage.models import LanguageModel, Vocabulary
from tutelage.models.linear_attention import BLOCK_TOKENS, LinearAttention
from tutelage.models.narrowed import narrowed_bytes
from tutelage.models.reading_memory import reading_numbers
from tutelage.models.steps.graphed import KEPT_FREE_SHARE, KEPT_SHARE
from tutelage.rewards import JudgeMemory
from tutelage.rollout.decoding import MAX_DRAFT_LENGTH
from tutelage.rollout.engines.paired import CACHE_SHARE
from tutelage.rollout.reading import tokens_per_chunk
from tutelage.training import MICRO_BATCH_TOKENS, Phase, Recipe
from tutelage.training.forms import chosen_form, share_with_kernels
from tutelage.types import Prompt

__all__ = ["GIB", "StepMemory", "activation_bytes", "free_bytes", "machine_bytes", "trained_bytes"]

GIB = 2**30
LIVE_LOGITS = 5  # float32 copies of a chunk's logits that are alive at once in the backward pass
LIVE_TILES = 6  # the same of a tile
QUANTISED_BITS = 4.5  # of a weight in NF4 with its share of the quantised scales, rounded up
LIVE_BLEND = 6  # float64-sized rows of both models while a policy picks a token
# Share of the free memory that a chosen micro-batch may fill: the forecast is one, and torch's allocator leaves gaps.
SHARE_TO_FILL = 0.8
MIN_MICRO_BATCH = 1024


@dataclass(frozen=True)
class StepMemory:
    """What one process needs at the height of each part of a training step.

    Of several processes it is one: it has its share of a step's answers; under "fsdp2" its part of gradients, moments
    and the weights that learn, beside a whole copy that decodes; of a sharded teacher its part of the layers.

    Fields:
      config: of the run.
      meta_models: every model without its weights, by its key in the run file.
      phases: the recipes.
      prompts: of the training data.
      vocabulary: the shared one.
      device: where it runs.
      needs_reference: some phase compares with a third model.
      num_processes: how many share the run.
      rating: how its answers are rated; None = they are not.
    """

    config: RunConfig
    meta_models: Mapping[str, LanguageModel]
    phases: Sequence[Phase]
    prompts: Sequence[Prompt]
    vocabulary: Vocabulary
    device: str
    needs_reference: bool = False
    num_processes: int = 1
    rating: RatingPlan | None = None

    def forecast(self, micro_batch_tokens: int) -> dict[str, dict[str, int]]:
        """Part of a step -> what takes memory then -> bytes.

        With an adapter, gradients and moments are its own; quantised weights are taken at 4.5 bits, scales included.
        """
        rating = {"rating": self._rating()} if self._has_reward_models else {}
        update = self.update(micro_batch_tokens)
        return {"rollout": self._rollout(), "scoring": self._scoring(), **rating, "update": update}

    def fitting_micro_batch(self, num_bytes: int) -> int:
        """Most tokens of one forward and backward whose update fits into so many bytes: a power of two.

        16,384 at most, since more make no GPU faster, and 1,024 at least, since below that the weights are what does
        not fit.
        """
        tokens = MICRO_BATCH_TOKENS
        while tokens > MIN_MICRO_BATCH and sum(self.update(tokens).values()) > SHARE_TO_FILL * num_bytes:
            tokens //= 2
        return tokens

    def update(self, micro_batch_tokens: int) -> dict[str, int]:
        """What takes memory at the height of the update: when the loss of a micro-batch is taken."""
        tokens = self._at_once(micro_batch_tokens)
        losses = [self._loss(phase.recipe, self._responses_in(tokens)) for phase in self.phases]
        return {
            **self._resident(),
            **self._kept_caches(),
            **self._narrow_weights(),
            "gradients": self._num_gradients * self._learned_here(),
            "activations": activation_bytes(
                self._student,
                tokens,
                checkpoints=self.config.runtime.gradient_checkpointing,
                repeats_keys=self.device.startswith("cuda"),
            ),
            **max(losses, key=lambda parts: sum(parts.values())),
        }

    def _rollout(self) -> dict[str, int]:
        rows = min(self.config.rollout.max_rows, self._num_answers)
        logits = rows * self.vocabulary.size * 8 * LIVE_BLEND
        return {**self._resident(), **self._caches(), "logits": logits}

    def _caches(self) -> dict[str, int]:
        """Of as many answers as are decoded at once: keys and values at their longest, and states of any length."""
        rollout = self.config.rollout
        rows = min(rollout.max_rows, self._num_answers)
        slot = sum(model.cache_bytes_per_slot for model in self._decoding)
        states = rows * sum(model.cache_bytes_per_row for model in self._decoding)
        both = rows * (self._longest + MAX_DRAFT_LENGTH) * slot + states
        budget = both
        if rollout.cache_gib is not None:
            budget = int(rollout.cache_gib * GIB)
        elif self.device.startswith("cuda"):
            budget = int(CACHE_SHARE * machine_bytes(self.device))
        fitting = min(budget, both)
        caches, states = (both - states) * fitting // both, states * fitting // both
        states += sum(model.drafted_state_bytes(rows, self._num_drafted) for model in self._decoding)
        return {"caches": caches, **({"states": states} if states else {})}

    @property
    def _num_drafted(self) -> int:
        return MAX_DRAFT_LENGTH if self._teacher_decodes and self.config.rollout.draft_length != 1 else 1

    def _kept_caches(self) -> dict[str, int]:
        """What captured decode steps work on, from one rollout to the next."""
        if not self.device.startswith("cuda"):
            return {}
        there = machine_bytes(self.device)
        free = max(0, there - sum(self._rollout().values()))
        most = int(min(KEPT_SHARE * there, KEPT_FREE_SHARE * free))
        return {"kept caches": min(self._caches()["caches"], len(self._decoding) * most)}

    def _scoring(self) -> dict[str, int]:
        scored = self._at_once(self.config.rollout.score_tokens)
        # Without a teacher here, the student reads again.
        largest = max(self._teachers, key=lambda model: reading_numbers(model.config), default=self._student)
        activations = scored * reading_numbers(largest.config) * largest.module.dtype.itemsize
        return {
            **self._resident(),
            **self._kept_caches(),
            "activations": activations,
            "logits": self._chunk_bytes(scored),
        }

    def _rating(self) -> dict[str, int]:
        reading = max(judge.reading for judge in self._judges)
        return {**self._resident(), **self._kept_caches(), "reward batch": reading}

    @cached_property
    def _judges(self) -> list[JudgeMemory]:
        rewards = [] if self.rating is None else self.rating.rewards
        return [reward.memory(self._num_answers, self._longest) for reward in rewards]

    @property
    def _has_reward_models(self) -> bool:
        return any(judge.weights for judge in self._judges)

    @property
    def _num_gradients(self) -> int:
        """Gradients that are there at once: a combination may compare those of all rewards."""
        if self.rating is None or not self.rating.combination.measures_gradients(0):
            return 1
        return len(self.rating.rewards)

    def _resident(self) -> dict[str, int]:
        """What is there throughout."""
        config, models = self.config, dict(self._local_models)
        student, teacher = models.pop("student"), models.pop("teacher", None)
        if self.needs_reference and "reference" not in models and student.trainable.changes_backbone:
            # A copy of the student; that of an adapter is the same backbone.
            models["reference"] = load_meta_model(as_it_starts(config.student, config.reference.share), None)
        learned = self._learned_here()
        is_cut = learned < trained_bytes(student)
        own = _weights(student, config.student.quantization) + (learned if is_cut else 0)
        others = sum(map(_weights, models.values()))
        if teacher is not None and config.teacher.is_student:
            if student.trainable.changes_backbone:  # else it is the same backbone, as the reference's
                others += _weights(load_meta_model(as_it_starts(config.student, config.teacher.share), None))
        elif teacher is not None:
            others += _weights_here(teacher, self.num_processes if config.runtime.shard_teacher else 1)
        resident = {"student": own, "teacher": others, "moments": 2 * learned}
        if self._has_reward_models:
            resident["reward models"] = sum(judge.weights for judge in self._judges)
        if student.autocast is not None:
            resident["weights to decode from"] = narrowed_bytes(student.module, student.autocast)
        return resident

    def _narrow_weights(self) -> dict[str, int]:
        """Copies of wider weights in the type of autocast, which PyTorch makes once per update."""
        student = self._student
        narrow = student.autocast
        if narrow is None or student.module.dtype.itemsize <= narrow.itemsize:
            return {}
        return {"weights in bfloat16": _weights(student) * narrow.itemsize // student.module.dtype.itemsize}

    def _loss(self, recipe: Recipe, tokens: int) -> dict[str, int]:
        """What the loss of so many response tokens holds beside the activations, in the form that it will have."""
        student = self._student
        width, size = int(student.config.hidden_size), self.vocabulary.size
        dtype, form = _product_dtype(student), self._form(recipe, tokens)
        narrow = dtype.itemsize
        reads_teacher = recipe.asks_whole_teacher and self._teachers
        has_kernels = (
            form == "tiled"
            and self.device != "cpu"
            and (not reads_teacher or share_with_kernels(recipe.losses, recipe.target) is not None)
        )
        wide = narrow if has_kernels else max(4, narrow)  # what gradients are summed up in
        head = student.padded_vocabulary_size * width * wide if student.trainable.changes_backbone else 0
        if form == "chunked":
            return {"logits": self._chunk_bytes(tokens), "gradient of the head": head}
        # A tensor of the right length without any memory, which tells the device.
        device = "cpu" if self.device == "cpu" else "meta"
        like_ND = torch.empty(1, 1, dtype=dtype, device=device).expand(tokens, width)
        hidden = tokens * width * wide
        entry_bytes = narrow
        if reads_teacher:
            teacher = max(self._teachers, key=lambda model: int(model.config.hidden_size))
            entry_bytes += max(wide, teacher.module.dtype.itemsize)
            hidden += tokens * int(teacher.config.hidden_size) * teacher.module.dtype.itemsize
        tiling = Tiling.fitting(self.vocabulary.view(like_ND.device), like_ND, entry_bytes, keeps=form == "tiled")
        kept = tiling.tokens * size * entry_bytes if form == "tiled" else 0
        logits = kept + tiling.tokens * tiling.vocabulary * 4 * (1 if has_kernels else LIVE_TILES)
        return {"logits": logits, "gradient of the head": head, "gradient of hidden states": hidden}

    def _form(self, recipe: Recipe, tokens: int) -> str:
        is_one_chunk = tokens <= tokens_per_chunk(self.vocabulary)
        wanted = self.config.runtime.loss
        asked = self._teachers if recipe.windows == [FULL_VOCABULARY] else []
        try:
            return chosen_form(wanted, recipe, self._student, asked, is_one_chunk=is_one_chunk)
        except ConfigurationError:  # refused where the run is put together
            return "chunked"

    @property
    def _student(self) -> LanguageModel:
        return self.meta_models["student"]

    @property
    def _local_models(self) -> dict[str, LanguageModel]:
        """All models but teachers that nobody asks, or whose memory is another machine's."""
        is_asked = self.config.evaluation.teacher_reads or any(phase.recipe.asks_teacher for phase in self.phases)
        tables = {"teacher": self.config.teacher, **dict(other_models(self.config))}
        return {
            name: model
            for name, model in self.meta_models.items()
            if not name.startswith("teacher") or (is_asked and not is_served(tables[name]))
        }

    @property
    def _teachers(self) -> list[LanguageModel]:
        return [model for name, model in self._local_models.items() if name.startswith("teacher")]

    @property
    def _decoding(self) -> list[LanguageModel]:
        """The models that decode answers."""
        return [self._student, *(self._teachers if self._teacher_decodes else ())]

    @property
    def _teacher_decodes(self) -> bool:
        return any(phase.recipe.policy.needs_teacher for phase in self.phases)

    def _learned_here(self) -> int:
        """Bytes of the weights whose gradients and moments this process holds."""
        num_parts = self.num_processes if self.config.runtime.strategy == "fsdp2" else 1
        return -(-trained_bytes(self._student) // num_parts)

    @property
    def _longest(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return max(prompt.longest for prompt in self.prompts) + self.config.rollout.max_new_tokens

    @property
    def _num_answers(self) -> int:
        rollout = self.config.rollout
        return -(-rollout.prompts_per_step // self.num_processes) * rollout.samples_per_prompt

    def _at_once(self, limit: int) -> int:
        """Most tokens of one forward; a single answer is never torn apart."""
        return min(self._num_answers * self._longest, max(limit, self._longest))

    def _responses_in(self, tokens: int) -> int:
        """Most response tokens among so many of a micro-batch, in which the answers to a prompt share its reading."""
        prompt = min(len(prompt.student_tokens) for prompt in self.prompts)
        answers = self.config.rollout.samples_per_prompt * self.config.rollout.max_new_tokens
        return -(-tokens * answers // (prompt + answers))

    def _chunk_bytes(self, tokens: int) -> int:
        return min(tokens, tokens_per_chunk(self.vocabulary)) * self.vocabulary.size * 4 * LIVE_LOGITS


def activation_bytes(
    student: LanguageModel, num_tokens: int, *, checkpoints: bool = False, repeats_keys: bool = False
) -> int:
    """What a forward over whole sequences leaves behind for its backward, and one layer's gradients on the way back.

    With b bytes of a number in matrix products, s in the stream between the layers and n = max(4, s) in norms, a token
    leaves in one layer

        norms before attention and feed-forward   2 n E, and 2 b E where products are narrower than norms
        what the projections read                 2 b E; of autocast, which copies once for each of them, 5 b E
        queries, keys, values                     3 b Q + 2 b K: as attention reads them, its output in both orders;
                                                  5 b Q where keys are repeated
        norms of queries and keys                 n (Q + K), and b (Q + K) where products are narrower; only Qwen3
        the feed-forward part                     4 b I

    and a gated delta net of `transformers` in its plain form, with d_k, d_v its head sizes, H_k, H_v numbers of heads
    and blocks of 64 tokens, in place of projections, queries, keys and values (measured; installed kernels keep less)

        five matrices of a block                  1280 H_v
        its queries, keys and values              (24 + 5.5 b) (d_k + d_v) H_v + 5 b d_k H_k
        what the projections read                 4.5 b E

    and linear attention of ours with H_q and H_k heads of d entries and F features, in texts of a block or more
    (measured; shorter ones keep fewer pairs)

        pairs of a block of 256 tokens, features  2048 H_q + 7 F (H_q + H_k)
        queries, keys, values                     (6.4 + 1.4 b) d (H_q + H_k), and with norms (6.2 + b) d (H_q + H_k)
        what the projections read                 5 b E

    Args:
      checkpoints: only every layer's input is kept, and one layer at a time computed again.
      repeats_keys: `models.attention` gives every query head keys of its own, as it does on CUDA for most batches.
    """
    config = student.config
    width, inner = int(config.hidden_size), int(getattr(config, "intermediate_size", 4 * config.hidden_size))
    num_heads = int(config.num_attention_heads)
    head_size = int(getattr(config, "head_dim", None) or width // num_heads)
    queries, keys = num_heads * head_size, int(getattr(config, "num_key_value_heads", None) or num_heads) * head_size
    b, s = _product_dtype(student).itemsize, int(student.module.dtype.itemsize)
    n = max(4, s)
    is_autocast = b < s
    of_norm = n + (b if s < n else 0)  # autocast leaves norms in the stream's type
    everywhere = 2 * of_norm * width + 4 * b * inner
    attention = (5 if is_autocast else 2) * b * width + b * (3 * queries + 2 * (queries if repeats_keys else keys))
    if _norms_heads(student):
        attention += (n + (b if b < n else 0)) * (queries + keys)
    recurrent = [_recurrent_bytes(mixer, width, b) for mixer in student.recurrent_layers.by_layer.values()]
    num_layers = int(config.num_hidden_layers)
    mixing = sum(recurrent) + (num_layers - len(recurrent)) * attention
    kept = num_layers * s * width if checkpoints else num_layers * everywhere + mixing
    return num_tokens * (kept + everywhere + max([attention, *recurrent]))


def _recurrent_bytes(mixer: Any, width: int, b: int) -> int:
    """Of one token in one recurrent layer, see `activation_bytes`."""
    if isinstance(mixer, LinearAttention):
        num_heads = mixer.num_q_heads + mixer.num_k_heads
        entry_bytes = 6.4 + 1.4 * b + (6.2 + b if mixer.kernel.is_normalised else 0)
        pairs = 8 * BLOCK_TOKENS * mixer.num_q_heads + 7 * mixer.head_k_dim * num_heads
        return int(pairs + entry_bytes * mixer.head_dim * num_heads + 5 * b * width)
    heads, size = mixer.num_v_heads, mixer.head_k_dim
    vectors = (24 + 5.5 * b) * heads * (size + mixer.head_v_dim) + 5 * b * mixer.num_k_heads * size
    return int(1280 * heads + vectors + 4.5 * b * width)


def trained_bytes(student: LanguageModel) -> int:
    """Bytes of the weights that learn."""
    return _size_of(student.trainable.parameters().values())


def machine_bytes(device: str) -> int:
    """Memory of an accelerator; of the machine, or of the container where that is less, on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(there, int(text)) if text.isdigit() else there


def free_bytes(device: str) -> int:
    """What of a GPU's memory nobody has taken yet."""
    return int(torch.cuda.mem_get_info(torch.device(device))[0])


def _product_dtype(student: LanguageModel) -> torch.dtype:
    """Of the student's matrix products."""
    dtype: torch.dtype = student.autocast or student.module.dtype
    return dtype


def _norms_heads(model: LanguageModel) -> bool:
    """Queries and keys are normalised, as in Qwen3."""
    layers = getattr(model.module.base_model, "layers", None) or ()
    return any(getattr(getattr(layer, "self_attn", None), "q_norm", None) is not None for layer in layers)


def _weights(model: LanguageModel, quantization: str | None = None) -> int:
    """Bytes of all weights; of quantised ones, matrices but for embeddings and head, and what learns is left alone."""
    named, learning = dict(model.module.named_parameters()), model.trainable.parameters()
    quantised = [
        weight
        for name, weight in named.items()
        if quantization is not None and weight.ndim == 2 and ".layers." in f".{name}" and name not in learning
    ]
    full = _size_of(named.values()) - _size_of(quantised)
    return full + int(sum(weight.numel() for weight in quantised) * QUANTISED_BITS / 8)


def _weights_here(model: LanguageModel, num_parts: int) -> int:
    """Bytes of a model whose layers are in so many parts, of which one is here; embedding and head are whole."""
    ends = (model.module.get_input_embeddings().weight, model.module.get_output_embeddings().weight)
    whole = _size_of({id(weight): weight for weight in ends}.values())
    return whole + -(-(_weights(model) - whole) // num_parts)


def _size_of(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)
