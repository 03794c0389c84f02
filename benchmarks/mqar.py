"""Which kernel recalls?  Multi-query associative recall by softmax attention and by linear attention with two kernels.

    python benchmarks/mqar.py [--json FILE] [--seeds 3] [--threads 1]

The model is the papers' (ReBased, arXiv 2402.10644, sec. 5.1): two layers, a short convolution and then the mixer, no
feed-forward part, tied embeddings, learned positions. Sizes are what a CPU can do: a width of 32 instead of 64 to 512,
rows of 32 tokens instead of 128 to 2,048, 64 words instead of 8,192. AdamW with a weight decay of 0.1, 64 fresh rows a
step, gradients clipped at 1, a learning rate of 1e-2 that falls as a cosine; the papers search it and train for
longer. Reported is the share of queries of 1,024 other rows whose most probable token is right. Guessing among the
values of a row gives 1 / P.

FILE is written after every run, and runs that it has are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from measuring import describe, machine, run_on_threads, wide_console, write_json
from tutelage.models.linear_attention import KERNELS, read
from tutelage.models.linear_attention.attention import EPSILON
from tutelage.tasks import IGNORED, AssociativeRecall

MIXERS = ("softmax", "based", "rebased")
ROWS, TEST_ROWS, WEIGHT_DECAY, FEATURE_SIZE, HEADS = 64, 1024, 0.1, 16, 2
LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Setting:
    """A task, a width of the model, and how long it learns."""

    task: AssociativeRecall
    width: int
    steps: int

    @property
    def name(self) -> str:
        """In tables, and in the file."""
        task = self.task
        return f"{task.num_pairs} pairs, {task.length} tokens, {task.vocabulary} words, width {self.width}"


SETTINGS = (
    Setting(AssociativeRecall(4, 32, 64), width=32, steps=1000),
    Setting(AssociativeRecall(8, 32, 64), width=32, steps=2000),
)


class ShortConvolution(nn.Module):
    """x + (causal convolution over 3 tokens) · (linear map): BaseConv of Zoology."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filters, self.bias = nn.Parameter(torch.randn(3, width) * 0.02), nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, width)

    def forward(self, x_BTE: Tensor) -> Tensor:
        # Sums of shifted rows: on one thread several times as fast as a grouped convolution.
        shifted = [F.pad(x_BTE, (0, 0, back, 0))[:, : x_BTE.shape[1]] for back in range(3)]
        convolved = sum(tap * row for tap, row in zip(self.filters, shifted, strict=True)) + self.bias
        return x_BTE + convolved * self.gate(x_BTE)


class Mixer(nn.Module):
    """Attention over all earlier tokens, by softmax or by a kernel."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kernel = KERNELS.get(kind)
        inner = HEADS * (FEATURE_SIZE if self.kernel is not None else width // HEADS)
        self.queries, self.keys = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.values, self.output = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        is_normalised = self.kernel is not None and self.kernel.is_normalised
        norms = [nn.LayerNorm(inner, eps=EPSILON) if is_normalised else nn.Identity() for _ in range(2)]
        self.query_norm, self.key_norm = norms

    def forward(self, x_BTE: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for each in (self.query_norm(self.queries(x_BTE)), self.key_norm(self.keys(x_BTE)), self.values(x_BTE))
        )
        if self.kernel is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = read(self.kernel, q[:, :, None], k, F.pad(v, (0, 1), value=1.0))[:, :, 0]
        return self.output(mixed.transpose(1, 2).flatten(2))


class Recaller(nn.Module):
    """Embedding, convolution, mixer, tied head."""

    def __init__(self, setting: Setting, kind: str) -> None:
        super().__init__()
        width = setting.width
        self.words, self.places = nn.Embedding(setting.task.vocabulary, width), nn.Embedding(setting.task.length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.convolution, self.mixer = ShortConvolution(width), Mixer(width, kind)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTE = self.words(tokens_BT) + self.places.weight
        x_BTE = x_BTE + self.convolution(self.norms[0](x_BTE))
        x_BTE = x_BTE + self.mixer(self.norms[1](x_BTE))
        return F.linear(self.norms[2](x_BTE), self.words.weight)


def accuracy(setting: Setting, kind: str, seed: int) -> dict[str, Any]:
    """Train one model and ask it about rows that it has not seen."""
    started = time.process_time()
    torch.manual_seed(seed)
    model = Recaller(setting, kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / setting.steps))
    )
    train, test = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10_000)
    for _ in range(setting.steps):
        tokens_BT, labels_BT = setting.task.draw(ROWS, train)
        loss = F.cross_entropy(model(tokens_BT).flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        tokens_BT, labels_BT = setting.task.draw(TEST_ROWS, test)
        is_right_BT = model(tokens_BT).argmax(-1) == labels_BT
        asked = labels_BT != IGNORED
    return {
        "accuracy": float(is_right_BT[asked].double().mean()),
        "loss": float(loss.detach()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "processor_seconds": time.process_time() - started,
    }


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="results; runs that it has are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    run_on_threads(options.threads)
    known = options.json is not None and options.json.exists()
    results: dict[str, dict[str, Any]] = json.loads(options.json.read_text())["results"] if known else {}
    console, facts = wide_console(), machine()
    table = Table("", *MIXERS, title="MQAR: accuracy, mean (each seed)", title_justify="left")
    for setting in SETTINGS:
        cells = []
        for kind in MIXERS:
            found = []
            for seed in range(options.seeds):
                key = f"{setting.name}, {kind}, seed {seed}"
                if key not in results:
                    results[key] = accuracy(setting, kind, seed)
                    write_json(options.json, {"machine": facts, "results": results})
                    console.print(key, f"{results[key]['accuracy']:.3f}", f"{results[key]['processor_seconds']:.0f} s")
                found.append(results[key]["accuracy"])
            cells.append(f"{statistics.fmean(found):.3f} ({', '.join(f'{each:.3f}' for each in found)})")
        table.add_row(setting.name, *cells)
    console.print(table, describe(facts))


if __name__ == "__main__":
    main()
