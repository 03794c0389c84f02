"""A tokenizer of bytes that shows what was written, chat templates, and questions."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tutelage.tasks import Problem

SPECIAL = ["<bos>", "<eos>", "<|user|>", "<|system|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}(no thinking){% endif %}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def make_tokenizer(template: str | None = None, *, before: str = "<bos>", after: str = "") -> Any:
    """One token per byte, so that decoding shows what was written; `before` and `after` are put around text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[(t, vocabulary[t]) for t in SPECIAL]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def read(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids))


QUESTION = Problem("q/0", "1 + 1?")
CHAT = Problem("q/1", ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "1 + 1?"}))
