"""What does a token loss beside a divergence over the whole vocabulary cost?  One pass through the heads, or two.

    python benchmarks/sum_of_losses.py
    python benchmarks/sum_of_losses.py --tokens 512 --vocabulary 151936 --device cuda

Times loss and gradient from hidden states in tiles: the divergence alone, the divergence with a policy gradient of the
sampled tokens in the same passes, and both by themselves one after the other. Rounds alternate; medians and their ratio
to the divergence alone are printed, and how far the gradients of the second and the third are apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from measuring import CLOCKS, describe, machine
from tutelage.kernels import FullDivergence, Head, Sampled, Side, Tiling, tiled_full_loss, tiled_support_loss
from tutelage.losses.distributions import ReverseKL
from tutelage.models import Vocabulary

Gradients = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (options.tokens, options.width)
    sides = []
    for _ in range(2):
        hidden = torch.randn(shape, device=options.device).requires_grad_()
        weight = (torch.randn(options.vocabulary, options.width) / options.width**0.5).to(options.device)
        sides.append(Side(hidden, Head(weight.requires_grad_())))
    student, teacher = sides
    view = Vocabulary(options.vocabulary).view(student.hidden_ND.device)
    tokens = torch.randint(options.vocabulary, (options.tokens,), device=options.device)
    sampled = Sampled(tokens, torch.ones(options.tokens, device=options.device))
    advantages = torch.randn(options.tokens, device=options.device)
    divergence = FullDivergence(ReverseKL().between, 1.0, 1.0)
    tiling = Tiling.fitting(view, student.hidden_ND, 8)

    def gradients(values: Tensor) -> Gradients:
        hidden, weight = torch.autograd.grad(values.sum(), (student.hidden_ND, student.head.weight_VD))
        return hidden, weight

    def of_tokens(logprobs: Tensor, span: slice) -> Tensor:
        return -advantages[span] * logprobs

    def alone() -> Gradients:
        return gradients(tiled_full_loss(student, teacher, view, divergence, sampled, tiling)[0])

    def together() -> Gradients:
        return gradients(tiled_full_loss(student, teacher, view, divergence, sampled, tiling, of_tokens)[0])

    def one_after_the_other() -> Gradients:
        nothing = tokens.new_empty(len(tokens), 0)
        by_itself = tiled_support_loss(
            student, view, lambda events, span: of_tokens(events.sampled_n, span), nothing, sampled, tiling
        )[0]
        (hidden, weight), (more_hidden, more_weight) = alone(), gradients(by_itself)
        return hidden + more_hidden, weight + more_weight

    forms: dict[str, Callable[[], Gradients]] = {
        "divergence alone": alone,
        "with a token loss, one pass": together,
        "with a token loss, two passes": one_after_the_other,
    }

    def now() -> float:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize(options.device)
        return CLOCKS[options.clock]()

    seconds: dict[str, list[float]] = {name: [] for name in forms}
    found = {name: form() for name, form in forms.items()}  # warms up
    for _ in range(options.rounds):
        for name, form in forms.items():
            started = now()
            form()
            seconds[name].append(now() - started)
    base = median(seconds["divergence alone"])
    table = Table("loss and gradient", "milliseconds", "ratio")
    for name, each in seconds.items():
        table.add_row(name, f"{1e3 * median(each):.1f}", f"{median(each) / base:.2f}")
    console = Console()
    console.print(table)
    one, two = found["with a token loss, one pass"], found["with a token loss, two passes"]
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, two, strict=True))
    console.print(f"largest difference of the gradients, relative to their largest entry: {apart:.1e}")
    sizes = f"{options.tokens} tokens, {options.vocabulary} words, width {options.width}"
    console.print(f"{sizes}; {describe(machine(options.device))}")


if __name__ == "__main__":
    main()
