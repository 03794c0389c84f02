"""A model that reads a text and gives one number for it: a reward model. It learns nothing and decodes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from tutelage.errors import ModelError
from tutelage.models.attention import without_plans
from tutelage.models.context import ContextLength, context_length_in
from tutelage.models.loading import check_files, load_module
from tutelage.models.packing import padded_batches
from tutelage.models.quantised import placement_of
from tutelage.models.reading import reading
from tutelage.models.reading_memory import reading_numbers
from tutelage.models.source import ModelSource
from tutelage.models.trainables.adapter_folder import base_of
from tutelage.models.weight_check import load_meta_module

__all__ = ["SequenceScorer", "load_sequence_scorer", "meta_sequence_scorer"]


@dataclass(frozen=True)
class SequenceScorer:
    """A model with one output per text.

    Fields:
      module: of transformers.
      tokenizer: the model's own.
      name: for messages.
    """

    module: Any
    tokenizer: Any
    name: str

    @property
    def context(self) -> ContextLength | None:
        """Most tokens of a text; None if its configuration does not say."""
        return context_length_in(self.module.config.get_text_config())

    @property
    def weight_bytes(self) -> int:
        """Of all weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.module.parameters())

    def reading_bytes(self, num_texts: int, longest: int, max_batch_tokens: int) -> int:
        """What `scores` takes beside the weights for so many texts of at most `longest` tokens."""
        tokens = max(longest, min(num_texts * longest, self._padded_tokens(max_batch_tokens)))
        return tokens * reading_numbers(self.module.config.get_text_config()) * int(self.module.dtype.itemsize)

    def tokens_of(self, text: str) -> list[int]:
        """The tokens of a text that a chat template wrote, which has its special tokens in it."""
        with reading("tokenizer", self.name):
            return list(self.tokenizer(_encodable(text), add_special_tokens=False, verbose=False)["input_ids"])

    def tokens_of_pair(self, first: str, second: str) -> list[int]:
        """The tokens of two plain texts, put together as the tokenizer puts pairs together."""
        with reading("tokenizer", self.name):
            return list(self.tokenizer(_encodable(first), _encodable(second), verbose=False)["input_ids"])

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]], max_batch_tokens: int) -> Tensor:
        """The output for each text: [B] in float64, on the CPU.

        A model without a padding id reads one text at a time, since it looks for a text's last token by that id.
        """
        pad = self._pad
        scores_B = torch.empty(len(sequences), dtype=torch.float64)
        lengths = {place: len(tokens) for place, tokens in enumerate(sequences)}
        for batch in padded_batches(lengths, self._padded_tokens(max_batch_tokens)):
            longest = lengths[batch[0]]
            tokens_BT = torch.full((len(batch), longest), pad or 0)
            mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, place in enumerate(batch):
                tokens_BT[row, : lengths[place]] = torch.tensor(sequences[place])
                mask_BT[row, : lengths[place]] = 1
            device = self.module.device
            with without_plans(device):
                found = self.module(input_ids=tokens_BT.to(device), attention_mask=mask_BT.to(device))
            scores_B[batch] = found.logits[:, 0].double().cpu()
        return scores_B

    @property
    def _pad(self) -> int | None:
        pad: int | None = self.module.config.get_text_config().pad_token_id
        return pad

    def _padded_tokens(self, max_batch_tokens: int) -> int:
        """Most tokens of a batch of several texts; 0 = there is none."""
        return 0 if self._pad is None else max_batch_tokens


def meta_sequence_scorer(source: ModelSource, tokenizer: Any) -> SequenceScorer:
    """The model that `load_sequence_scorer` would load, with shapes and no numbers.

    Raises:
      ModelError: as `load_sequence_scorer`.
    """
    if base_of(source.path) is not None:
        raise ModelError(
            f"the reward model {source.path!r} is an adapter; expected a whole model. Merge it into its base first."
        )
    check_files(source)
    with reading("model", source.path):
        config = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    if config.num_labels != 1:
        raise ModelError(
            f"the reward model {source.path!r} has {config.num_labels} outputs; expected one, which is the reward. "
            "Give a model that was trained with num_labels = 1, or a [[reward]] with a function that reads this one."
        )
    module = load_meta_module(source, kind=AutoModelForSequenceClassification)
    largest, rows = max(tokenizer.get_vocab().values()), int(module.get_input_embeddings().weight.shape[0])
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of the reward model {source.path!r} has the id {largest}, and the model {rows} rows of "
            "embeddings. Give the tokenizer that belongs to the model."
        )
    return SequenceScorer(module, tokenizer, source.path)


def load_sequence_scorer(source: ModelSource, tokenizer: Any, *, device: str | torch.device = "cpu") -> SequenceScorer:
    """Load a reward model from a directory or hub id.

    Raises:
      ModelError: missing or unreadable files, weights of another model, several outputs, an adapter, NaN.
    """
    placement = placement_of(meta_sequence_scorer(source, tokenizer).module.config, device)
    module = load_module(AutoModelForSequenceClassification, source, placement).requires_grad_(False)
    if not placement:
        module.to(device)
    return SequenceScorer(module, tokenizer, source.path)


def _encodable(text: str) -> str:
    """The text with question marks for halves of surrogate pairs, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
