"""What does a refused draft cost a model with recurrent layers, and how does such a layer read a short block?

    python benchmarks/hybrid.py [--clock cpu] [--rounds 5] [--json FILE]

Two random Qwen3.5 models, three of four layers recurrent, the teacher three times as wide and twice as deep. First,
answers under a trust region: in lock-step, and with drafts of 2, 4 and 8 tokens and of measured ("auto") or estimated
lengths. States after each drafted token are kept, or what stands is read again; or drafts are read as blocks of 64.
Second, one recurrent layer of the teacher that reads 2 to 16 tokens of 1 to 32 rows in both ways.

Contenders take turns; ratios are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from rich.table import Table
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from measuring import (
    CLOCKS,
    Measurement,
    Results,
    describe,
    machine,
    middle,
    ratio,
    run_on_threads,
    take_turns,
    wide_console,
    write_json,
)
from tutelage.models import LanguageModel, recurrent
from tutelage.policies import TrustRegion
from tutelage.rollout import Limits, PairedEngine

VOCABULARY, NEW_TOKENS, KL_RADIUS = 2000, 32, 0.05
DRAFTS = (1, 2, 4, 8, "auto", "estimated")
# Name -> (most tokens that are read one by one, bytes of states that are kept).
WAYS = {"kept": (8, 2**30), "read again": (8, 0), "blocks": (1, 0)}


def model(hidden_size: int, num_layers: int, seed: int) -> LanguageModel:
    """A random Qwen3.5 of this width."""
    config = Qwen3_5TextConfig(
        vocab_size=VOCABULARY, hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=num_layers,
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, linear_num_key_heads=4, linear_num_value_heads=8,
        linear_key_head_dim=32, linear_value_head_dim=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LanguageModel(Qwen3_5ForCausalLM(config).train(False))


def answers(engine: PairedEngine, way: str, num_rows: int, seed: int) -> Measurement:
    """Answers to as many prompts as there are rows."""
    most, num_bytes = WAYS[way]
    with patch.multiple(recurrent, MAX_SINGLE_TOKENS=most, KEPT_STATE_BYTES=num_bytes):
        prompts = [list(range(1, 10 + row)) for row in range(num_rows)]
        rollouts = engine.generate(TrustRegion(KL_RADIUS), prompts, max_new_tokens=NEW_TOKENS, seed=seed)
    replaced = sum(int(rollout.replaced.sum()) for rollout in rollouts if rollout.replaced is not None)
    num_tokens = sum(map(len, rollouts))
    return {"tokens": num_tokens, "kept": 1 - replaced / num_tokens}


@torch.no_grad()
def reading(teacher: LanguageModel, num_rows: int, num_new: int, most: int, seed: int) -> Measurement:
    """Ten readings of a block by the first recurrent layer, from states that have read five tokens."""
    mixer = teacher._module_forward.mixers.by_layer[0]
    width = int(teacher.config.hidden_size)
    hidden_BTE = torch.randn(num_rows, 5 + num_new, width, generator=torch.Generator().manual_seed(seed))
    _, states = recurrent._read_block(mixer.forward, hidden_BTE[:, :5], None)
    with patch.multiple(recurrent, MAX_SINGLE_TOKENS=most, SINGLE_TOKENS_PER_ROW=most):
        for _ in range(10):
            recurrent._read(mixer.forward, hidden_BTE[:, 5:], states)
    return {"tokens": 10 * num_rows * num_new}


def main() -> None:
    """Measure, print two tables, and keep the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    run_on_threads(1)
    student, teacher = model(128, 4, seed=1), model(384, 8, seed=2)
    console = wide_console()
    kept: dict[str, Results] = {}

    def turns(title: str, contenders: Mapping[str, Callable[[int], Measurement]]) -> Results:
        kept[title] = take_turns(contenders, arguments.rounds, title=title, clock=arguments.clock)
        return kept[title]

    for num_rows in arguments.rows:
        contenders = {}
        for length in DRAFTS:
            for way in WAYS if length != 1 else ["kept"]:
                engine = PairedEngine(student, teacher, draft_length=length, limits=Limits(max_rows=num_rows))
                contenders[f"{length} {way}"] = partial(answers, engine, way, num_rows)
        results = turns(f"{num_rows} rows", contenders)
        table = Table("drafts", *WAYS, title=f"{num_rows} rows: tokens per second over lock-step")
        for length in DRAFTS[1:]:
            quotients = [ratio(results[f"{length} {way}"], results["1 kept"], "tokens_per_second") for way in WAYS]
            table.add_row(str(length), *(f"{quotient:.2f}" for quotient in quotients))
        console.print(table, f"{middle(results['8 kept'], 'kept'):.2f} of the drafts kept")
    table = Table(
        "rows", *(f"{num_new} tokens" for num_new in (2, 4, 8, 16)), title="token by token over a block: seconds"
    )
    for num_rows in arguments.rows:
        cells = []
        for num_new in (2, 4, 8, 16):
            ways = {
                name: partial(reading, teacher, num_rows, num_new, most) for name, most in (("one", 16), ("block", 1))
            }
            results = turns(f"{num_rows} x {num_new}", ways)
            cells.append(f"{ratio(results['one'], results['block'], 'seconds'):.2f}")
        table.add_row(str(num_rows), *cells)
    console.print(table, describe(machine()))
    write_json(arguments.json, {"machine": machine(), "results": kept})


if __name__ == "__main__":
    main()
