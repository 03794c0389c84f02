"""TRB in one file: the executable specification of this library's main job.

    python -m tutelage.demo.reference_loop [STEPS]

Plain torch and transformers, nothing imported from the library's algorithms, everything done the slow and obvious way:
no key/value cache, bisection instead of Newton, one Python loop over rows for the random numbers, drafts judged one by
one, where how many are made at once cannot matter. A test requires the
library to reproduce these losses step by step, so where the two disagree, one of them is wrong.

The method (arXiv 2605.31159): at every prefix sample from mu ∝ p^(1-b) q^b with the largest b in [0, 1] that keeps
KL(mu || p) <= eps_k, where eps_k = eps_0 (1 - k/K) falls to zero after K steps; then minimise the student's reverse KL
to the teacher on the prefixes that were visited.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Setting", "train"]


@dataclass(frozen=True)
class Setting:
    """The numbers of a run.

    Fields:
      stop: the token that ends an answer.
      prompts_per_step, samples: prompts of a step, and answers to each.
      limit: most tokens of an answer.
      start, horizon: eps_0 and K.
      top_k: tokens that the loss looks at.
      learning_rate, warmup: of AdamW, and the steps in which it rises.
      seed: of all random numbers.
      drafts: tokens come from the student and are judged; False = drawn from mu (`rollout.draft_length = 1`).
    """

    stop: int
    prompts_per_step: int = 16
    samples: int = 4
    limit: int = 90
    start: float = 0.05
    horizon: int = 25
    top_k: int = 16
    learning_rate: float = 2e-4
    warmup: int = 15
    seed: int = 0
    drafts: bool = True


def uniforms(seed: int, step: int, prompt: int, sample: int, position: int) -> tuple[float, float]:
    """The two random numbers of one token: Philox 4x32-10 with counter (position, sample, prompt, step), key `seed`."""
    c, k = [position, sample, prompt, step], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return float((c[0] << 21) | (c[1] >> 11)) * 2.0**-53, float((c[2] << 21) | (c[3] >> 11)) * 2.0**-53


def budget(step: int, start: float, horizon: int) -> float:
    """KL budget of step k = 0, 1, ..."""
    return start * (1 - step / horizon) if step < horizon else 0.0


def behaviour(student_logits: Tensor, teacher_logits: Tensor, radius: float) -> Tensor:
    """Probabilities of mu for rows of logits [B, V]."""
    log_p, log_q = student_logits.double().log_softmax(-1), teacher_logits.double().log_softmax(-1)

    def blend(b: Tensor) -> Tensor:
        return ((1 - b) * log_p + b * log_q).log_softmax(-1)

    def kl(log_mu: Tensor) -> Tensor:
        return (log_mu.exp() * (log_mu - log_p)).sum(-1, keepdim=True)

    low, high = torch.zeros(len(log_p), 1, dtype=torch.float64), torch.ones(len(log_p), 1, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        feasible = kl(blend(middle)) <= radius
        low, high = torch.where(feasible, middle, low), torch.where(feasible, high, middle)
    b = torch.where(kl(log_q) <= radius, 1.0, low) if radius > 0 else torch.zeros_like(low)
    return blend(b).exp()


def draw(weights: Tensor, u: float) -> int:
    """The first token at which the cumulative weight exceeds the share u of the whole."""
    cumulative = weights.cumsum(-1)
    return int((cumulative > u * cumulative[-1]).nonzero()[0])


def judged(p: Tensor, mu: Tensor, u: float, keep: float) -> int:
    """A draft of p, kept with probability min(1, mu / p) and otherwise replaced by a draw from (mu - p)+."""
    draft = draw(p, u)
    ratio = float(mu[draft] / p[draft])
    return draft if keep < ratio else draw((mu - p).clamp(min=0), (keep - ratio) / (1 - ratio))


def logits_of(model: Any, sequences: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Logits [length, V] of every sequence, from one right-padded forward (padding comes last, attention is causal)."""
    longest = max(len(sequence) for sequence in sequences)
    tokens = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
    for sequence, logits in zip(sequences, model(input_ids=tokens, use_cache=False).logits, strict=True):
        yield logits[: len(sequence)]


@torch.no_grad()
def roll_out(
    student: Any, teacher: Any, prompts: Sequence[Sequence[int]], setting: Setting, step: int
) -> list[tuple[Sequence[int], list[int]]]:
    """Pairs of prompt and sampled answer, ordered by prompt, then by sample."""
    radius = budget(step, setting.start, setting.horizon)
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(setting.samples)]
    answers: list[list[int]] = [[] for _ in rows]
    for position in range(setting.limit):
        alive = [i for i, answer in enumerate(answers) if not answer or answer[-1] != setting.stop]
        if not alive:
            break
        sequences = [[*prompts[rows[i][0]], *answers[i]] for i in alive]
        p = torch.stack([logits[-1] for logits in logits_of(student, sequences)])
        q = torch.stack([logits[-1] for logits in logits_of(teacher, sequences)])
        for i, own, mu in zip(alive, p.double().softmax(-1), behaviour(p, q, radius), strict=True):
            u, keep = uniforms(setting.seed, step, rows[i][0], rows[i][1], position)
            answers[i].append(judged(own, mu, u, keep) if setting.drafts and radius > 0 else draw(mu, u))
    return [(prompts[number], answer) for (number, _), answer in zip(rows, answers, strict=True)]


def loss_of(student: Any, teacher: Any, rollouts: Sequence[tuple[Sequence[int], list[int]]], top_k: int) -> Tensor:
    """Reverse KL on the student's top-k and, as one more event, everything else; mean over all response tokens."""
    sequences = [[*prompt, *answer] for prompt, answer in rollouts]
    with torch.no_grad():
        teacher_logits = list(logits_of(teacher, sequences))
    terms = []
    for (prompt, answer), p, q in zip(rollouts, logits_of(student, sequences), teacher_logits, strict=True):
        span = slice(len(prompt) - 1, len(prompt) - 1 + len(answer))  # the logits that predict the answer
        log_p, log_q = p[span].log_softmax(-1), q[span].log_softmax(-1)
        support = log_p.detach().topk(top_k).indices
        outside = torch.ones_like(log_p, dtype=torch.bool).scatter(1, support, False)

        def events(log_prob: Tensor, support: Tensor = support, outside: Tensor = outside) -> Tensor:
            rest = log_prob.masked_fill(~outside, -math.inf).logsumexp(-1, keepdim=True)
            return torch.cat([log_prob.gather(1, support), rest], dim=-1)

        terms.append((events(log_p).exp() * (events(log_p) - events(log_q))).sum(-1))
    return torch.cat(terms).mean()


def train(
    student: Any, teacher: Any, prompts: Sequence[Sequence[int]], setting: Setting, steps: int
) -> Iterator[float]:
    """Train the student in place, yielding the loss of every step."""
    student.eval()  # no dropout: the loss must see the distribution that was sampled from
    optimizer = torch.optim.AdamW(student.parameters(), lr=setting.learning_rate, betas=(0.9, 0.999), weight_decay=0.01)
    for step in range(steps):
        first = step * setting.prompts_per_step
        batch = [prompts[i % len(prompts)] for i in range(first, first + setting.prompts_per_step)]
        rollouts = roll_out(student, teacher, batch, setting, step)
        loss = loss_of(student, teacher, rollouts, setting.top_k)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for group in optimizer.param_groups:
            share = min(step + 1, setting.warmup) / setting.warmup
            group["lr"] = setting.learning_rate * (1 - math.cos(math.pi * share)) / 2
        optimizer.step()
        yield float(loss.detach())


def main() -> None:
    """Run a few steps on the embedded pair."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tutelage.demo import make_problems, student_path, teacher_path

    tokenizer = AutoTokenizer.from_pretrained(student_path())
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (student_path(), teacher_path()))
    prompts: Any = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.problem}], add_generation_prompt=True, return_dict=False
        )
        for problem in make_problems(64, seed=1)
    ]
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for step, loss in enumerate(train(student, teacher, prompts, Setting(tokenizer.eos_token_id), steps)):
        print(f"step {step}: loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
