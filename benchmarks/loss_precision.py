"""What do the types of kept logits and of the head's gradient cost in precision?  A simulation of the kernels on a CPU.

    python benchmarks/loss_precision.py

Reverse KL of bfloat16 hidden states and heads over 32,768 words; errors in norm of the gradients, against logits in
float64 from float32 products. Gradients on logits are rounded to bfloat16, as the products that they go into want
them; the head's is summed up over blocks of tokens in float32 or in bfloat16, products in float32.
"""

from __future__ import annotations

import torch
from rich.table import Table
from torch import Tensor

from measuring import describe, machine, run_on_threads, wide_console

TOKENS, WIDTH, VOCABULARY = 1024, 512, 32_768
SPREADS = (2.5, 6.0)  # nats
BLOCKS = (8, 32)
FIRST_TILE = 4096  # whose peak is taken off a row

KEPT = {
    "bfloat16": lambda logits_NV: logits_NV.bfloat16(),
    "float16": lambda logits_NV: logits_NV.half(),
    "float16 less a number per row": lambda logits_NV: (
        logits_NV - logits_NV[:, :FIRST_TILE].amax(-1, keepdim=True)
    ).half(),
    "float32": lambda logits_NV: logits_NV,
}


def main() -> None:
    """Simulate, print."""
    run_on_threads(1)
    console = wide_console()
    console.print(describe(machine()))
    for spread in SPREADS:
        shown = Table(title=f"logits that spread by {spread} nats", title_justify="left")
        columns = ["hidden states", "head, in float32", *(f"head, in bfloat16, {number} blocks" for number in BLOCKS)]
        for heading in ("kept", *columns):
            shown.add_column(heading, justify="left" if heading == "kept" else "right")
        for name, numbers in errors(spread).items():
            shown.add_row(name, *(f"{number:.1e}" for number in numbers))
        console.print(shown)


def errors(spread: float) -> dict[str, list[float]]:
    """Of every type that is kept: hidden states, the head in one float32 sum, the head in bfloat16 over blocks."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, std: float) -> Tensor:
        return std * torch.randn(rows, WIDTH, generator=generator)

    std = spread / WIDTH**0.5
    hidden, weight = drawn(TOKENS, 1).bfloat16().float(), drawn(VOCABULARY, std).bfloat16().float()
    others = (
        (hidden + drawn(TOKENS, 0.5)).bfloat16().float(),
        (weight + drawn(VOCABULARY, 0.2 * std)).bfloat16().float(),
    )
    student, teacher = hidden @ weight.T, others[0] @ others[1].T
    true = on_logits(student.double(), teacher.double())
    true_hidden, true_weight = true @ weight.double(), true.T @ hidden.double()
    found = {}
    for name, kept in KEPT.items():
        gradient = on_logits(kept(student).float(), kept(teacher).float()).bfloat16().float()
        found[name] = [
            relative(gradient @ weight, true_hidden),
            relative(gradient.T @ hidden, true_weight),
            *(relative(in_blocks(gradient, hidden, number), true_weight) for number in BLOCKS),
        ]
    return found


def on_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """p (log p - log q - D)."""
    logprobs, target = student.log_softmax(-1), teacher.log_softmax(-1)
    gaps = logprobs - target
    return logprobs.exp() * (gaps - (logprobs.exp() * gaps).sum(-1, keepdim=True))


def in_blocks(gradient: Tensor, hidden: Tensor, number: int) -> Tensor:
    """The head's gradient, rounded to bfloat16 after each block of tokens."""
    total = torch.zeros(VOCABULARY, WIDTH, dtype=torch.bfloat16)
    for mine, states in zip(gradient.chunk(number), hidden.chunk(number), strict=True):
        total = (total.float() + mine.T @ states).bfloat16()
    return total


def relative(found: Tensor, true: Tensor) -> float:
    """Of what is returned, in bfloat16."""
    return float((found.bfloat16().double() - true).norm() / true.norm())


if __name__ == "__main__":
    main()
