"""One form of the loss, measured in a process of its own: peak memory of the first call, then times.

Run by `loss.py`, for TRL with the interpreter of an environment that has it; then it needs nothing of this library.
The job is the first argument, the answer a line of JSON. Every form gives the mean divergence over the tokens and the
gradients of hidden states and head.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SEED, HIDDEN_STD = 0, 1.0
PROJECTION_TOKENS = 512  # of a piece of the yardstick
SHOWN_ROWS = 256  # of the head's gradient, compared between forms
TOP_K = 16

Inputs = dict[str, Any]


def main() -> None:
    """Measure one form."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    inputs = make_inputs(job)
    form = FORMS[job["form"]](inputs, job["jsd_share"])
    is_cuda = job["device"].startswith("cuda")
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[job["clock"]]

    def timed(run: Callable[[], object]) -> float:
        started = clock()
        run()
        if is_cuda:
            torch.cuda.synchronize()
        return clock() - started

    before = reset_peak(is_cuda)
    loss = learn(form, inputs)
    extra = peak(is_cuda) - before
    found = [inputs["hidden"].grad, inputs["weight"].grad]
    shown = torch.linspace(0, len(found[1]) - 1, SHOWN_ROWS).long()
    torch.save([found[0].cpu(), found[1][shown.to(found[1].device)].cpu()], job["gradients"])
    answer = {"extra_bytes": extra, "loss": loss, "seconds": [], "projections": []}
    for _ in range(job["repeats"]):
        answer["seconds"].append(timed(lambda: learn(form, inputs)))
        answer["projections"].append(timed(lambda: projections(inputs)))
    print(json.dumps(answer))


def make_inputs(job: dict[str, Any]) -> Inputs:
    """Hidden states and heads whose logits spread by some nats, as those of models do."""
    generator = torch.Generator(job["device"]).manual_seed(SEED)
    dtype, width, size = getattr(torch, job["dtype"]), job["width"], job["vocabulary"]

    def drawn(rows: int, std: float) -> Tensor:
        made = torch.randn(rows, width, generator=generator, device=job["device"], dtype=dtype)
        return made.mul_(std)

    hidden, weight = drawn(job["tokens"], HIDDEN_STD), drawn(size, 2.5 / width**0.5)
    return {
        "hidden": hidden.requires_grad_(),
        "weight": weight.requires_grad_(),
        "teacher_hidden": hidden.detach() + drawn(job["tokens"], 0.5),
        "teacher_weight": weight.detach() + drawn(size, 0.5 / width**0.5),
    }


def learn(form: Callable[[], Tensor], inputs: Inputs) -> float:
    """A forward and a backward."""
    inputs["hidden"].grad = inputs["weight"].grad = None
    loss = form()
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


@torch.no_grad()
def projections(inputs: Inputs) -> None:
    """The multiplications that no form can do without: both heads, and the gradients of hidden states and head."""
    hidden, weight = inputs["hidden"], inputs["weight"]
    of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
    for first in range(0, len(hidden), PROJECTION_TOKENS):
        span = slice(first, first + PROJECTION_TOKENS)
        _ = inputs["teacher_hidden"][span] @ inputs["teacher_weight"].T
        logits = hidden[span] @ weight.T
        torch.mm(logits, weight, out=of_hidden[span])
        of_weight.addmm_(logits.T, hidden[span])


def reset_peak(is_cuda: bool) -> int:
    """Bytes in use now; the peak counts from here."""
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return status_bytes("VmRSS")


def peak(is_cuda: bool) -> int:
    """Most bytes in use since `reset_peak`."""
    if is_cuda:
        return torch.cuda.max_memory_allocated()
    return max(status_bytes("VmHWM"), 0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def status_bytes(name: str) -> int:
    """A line of the process's status on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def naive(is_exact: bool = False) -> Callable[[Inputs, float], Callable[[], Tensor]]:
    """Whole logits, whole distributions, autograd; exact: products in float32, so that no logit is rounded to less."""

    def of(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
        divergence = divergence_of(jsd_share)

        def logits(who: str) -> Tensor:
            factors = inputs[f"{who}hidden"], inputs[f"{who}weight"].T
            hidden, weight = (each.float() for each in factors) if is_exact else factors
            return (hidden @ weight).float()

        def form() -> Tensor:
            with torch.no_grad():
                teacher = logits("teacher_").log_softmax(-1)
            return divergence.between(logits("").log_softmax(-1), teacher).mean()

        return form

    return of


def chunked(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
    """Ours in chunks of tokens, each computed again in backward."""
    from tutelage.rollout.reading import tokens_per_chunk
    from tutelage.training.forms.chunked import in_chunks
    from tutelage.types import DenseTarget

    divergence, vocabulary = divergence_of(jsd_share), vocabulary_of(inputs)

    def per_token(hidden: Tensor, span: slice) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = vocabulary.shared_logits(inputs["teacher_hidden"][span] @ inputs["teacher_weight"].T)
        return {"divergence": divergence(vocabulary.shared_logits(hidden @ inputs["weight"].T), DenseTarget(teacher))}

    return lambda: in_chunks(per_token, inputs["hidden"], tokens_per_chunk(vocabulary))["divergence"].mean()


def chunked_support(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
    """The same on a recorded support and its rest."""
    from tutelage.rollout.reading import tokens_per_chunk
    from tutelage.training.forms.chunked import in_chunks
    from tutelage.types import SparseTarget

    divergence, vocabulary = divergence_of(jsd_share, support="student_top_k"), vocabulary_of(inputs)
    record = record_of(inputs)

    def per_token(hidden: Tensor, span: slice) -> dict[str, Tensor]:
        logits = vocabulary.shared_logits(hidden @ inputs["weight"].T)
        return {"divergence": divergence(logits, SparseTarget(*(part[span] for part in record)))}

    return lambda: in_chunks(per_token, inputs["hidden"], tokens_per_chunk(vocabulary))["divergence"].mean()


def tiled(keeps: bool) -> Callable[[Inputs, float], Callable[[], Tensor]]:
    """Ours in tiles, kept through a block's passes or computed again in each."""

    def of(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
        from tutelage.kernels import FullDivergence, Head, Sampled, Side, Tiling, entry_bytes, tiled_full_loss

        hidden, num_tokens = inputs["hidden"], len(inputs["hidden"])
        view = vocabulary_of(inputs).view(hidden.device)
        tokens, weights = places_and_weights(hidden)
        kept = entry_bytes(hidden.device, jsd_share, hidden.dtype, hidden.dtype)
        tiling = Tiling.fitting(view, hidden, kept, keeps=keeps)
        student, teacher = (Side(inputs[f"{who}hidden"], Head(inputs[f"{who}weight"])) for who in ("", "teacher_"))
        divergence, sampled = FullDivergence(divergence_of(jsd_share).between, 1.0, jsd_share), Sampled(tokens, weights)
        return lambda: tiled_full_loss(student, teacher, view, divergence, sampled, tiling)[0].sum() / num_tokens

    return of


def tiled_support(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
    """The same on a recorded support and its rest."""
    from tutelage.kernels import Events, Head, Sampled, Side, Tiling, tiled_support_loss
    from tutelage.types import SparseTarget

    hidden, record = inputs["hidden"], record_of(inputs)
    divergence = divergence_of(jsd_share, support="student_top_k")
    view = vocabulary_of(inputs).view(hidden.device)
    tokens, weights = places_and_weights(hidden)
    tiling = Tiling.fitting(view, hidden, hidden.itemsize)

    def of_events(events: Events, span: slice) -> Tensor:
        target = SparseTarget(*(part[span] for part in record))
        return divergence.between(*divergence.window.events_on_record(events.kept_nK, events.rest_n, target))

    common = (of_events, record[0], Sampled(tokens, weights), tiling)
    return lambda: tiled_support_loss(Side(hidden, Head(inputs["weight"])), view, *common)[0].sum() / len(hidden)


def trl(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
    """TRL's chunked divergence."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    sides = (inputs["hidden"], inputs["weight"], None, inputs["teacher_hidden"], inputs["teacher_weight"], None)
    return lambda: ChunkedDivergenceFunction.apply(*sides, jsd_share)[0].mean()


def liger(inputs: Inputs, jsd_share: float) -> Callable[[], Tensor]:
    """Liger's fused linear JSD, which is Triton on CUDA only."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    fused = LigerFusedLinearJSD(jsd_beta=jsd_share)
    sides = (inputs["hidden"], inputs["weight"], inputs["teacher_hidden"], inputs["teacher_weight"])
    return lambda: fused(*sides, None)


def divergence_of(jsd_share: float, **support: Any) -> Any:
    """Reverse KL at 1, forward KL at 0, as in TRL and Liger."""
    from tutelage.divergences import JensenShannon

    return JensenShannon(target_share=jsd_share, top_k=TOP_K, **(support or {"support": "full"}))


def vocabulary_of(inputs: Inputs) -> Any:
    """Every row of the heads is a token, and nothing is merged: the plainest case, which the others can do too."""
    from tutelage.models import Vocabulary

    return Vocabulary(len(inputs["weight"]))


@torch.no_grad()
def record_of(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """The student's top tokens, and the teacher on them and on the rest, piece by piece."""
    from tutelage.distributions import normalise, tail_logprobs

    parts = []
    for first in range(0, len(inputs["hidden"]), 128):
        span = slice(first, first + 128)
        ids = (inputs["hidden"][span] @ inputs["weight"].T).topk(TOP_K).indices
        logprobs = normalise(inputs["teacher_hidden"][span] @ inputs["teacher_weight"].T)
        parts.append((ids, logprobs.gather(-1, ids), tail_logprobs(logprobs, ids)))
    ids, logprobs, tails = (torch.cat(each) for each in zip(*parts, strict=True))
    return ids, logprobs, tails


def places_and_weights(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Sampled tokens, of which nothing is asked here, and a plain mean."""
    num_tokens = len(hidden)
    return torch.zeros(num_tokens, dtype=torch.int64, device=hidden.device), torch.ones(
        num_tokens, device=hidden.device
    )


FORMS: dict[str, Callable[[Inputs, float], Callable[[], Tensor]]] = {
    "naive": naive(),
    "exact": naive(is_exact=True),
    "chunked": chunked,
    "tiled": tiled(keeps=True),
    "recomputed": tiled(keeps=False),
    "TRL": trl,
    "Liger": liger,
    "chunked, top 16": chunked_support,
    "tiled, top 16": tiled_support,
}


if __name__ == "__main__":
    main()
