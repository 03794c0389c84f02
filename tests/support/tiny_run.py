"""A run small enough for a test: a tiny tokenizer, two tiny Qwen3 models, a prompt file and a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from tests.support.tiny_models import SHAPE

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(eos: str = "<|endoftext|>", extra: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer without merges: 256 bytes, Qwen's special tokens, Qwen's kind of chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate([*alphabet, *extra])}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


def save_model(
    folder: Path, tokenizer: Any, *, padded_size: int, stop_ids: int | list[int], seed: int, **shape: Any
) -> Path:
    """A randomly initialised Qwen3 model directory."""
    settings = {**SHAPE, "initializer_range": 0.1, **shape, "vocab_size": padded_size, "eos_token_id": stop_ids}
    torch.manual_seed(seed)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings, tie_word_embeddings=True))
    model.generation_config.eos_token_id = stop_ids
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_pair(folder: Path) -> tuple[Path, Path]:
    """A "base" student and a "chat" teacher: the same tokens, other padded sizes, other stop ids, as Qwen3 has them."""
    end_of_text, _, im_end = (256, 257, 258)
    student = save_model(
        folder / "student",
        make_tokenizer(),
        padded_size=264,
        stop_ids=end_of_text,
        seed=1,
        max_position_embeddings=2048,
    )
    teacher = save_model(
        folder / "teacher",
        make_tokenizer(eos="<|im_end|>"),
        padded_size=272,
        stop_ids=[im_end, end_of_text],
        seed=2,
        max_position_embeddings=2048,
        num_hidden_layers=3,
    )
    return student, teacher


def write_prompts(path: Path, count: int = 12) -> Path:
    """Sums as problems."""
    rows = [{"id": f"sum/{i}", "problem": f"What is {i} + {2 * i}?", "answer": str(3 * i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_run_file(folder: Path, text: str = "", **top: Any) -> Path:
    """A complete run file over `save_pair` and `write_prompts`; `text` is appended."""
    student, teacher = save_pair(folder)
    prompts = write_prompts(folder / "prompts.jsonl")
    lines = {"name": "tiny", "output": str(folder / "run"), "steps": 6, "seed": 3, **top}
    head = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    path = folder / "run.toml"
    path.write_text(
        f"""{head}
student = "{student}"
teacher = "{teacher}"
data = "{prompts}"
[policy]
name = "trust_region"
kl_radius = {{ schedule = "linear", start = 0.05, stop = 0.0, steps = 4 }}
[rollout]
prompts_per_step = 3
samples_per_prompt = 2
max_new_tokens = 10
[optimizer]
learning_rate = 1e-3
[checkpoint]
every = 2
[evaluation]
every = 3
num_samples = 2
sets = [{{ path = "{prompts}", name = "sums", limit = 3 }}]
[runtime]
device = "cpu"
threads = 1
{text}
"""
    )
    return path
