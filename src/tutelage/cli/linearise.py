"""`tutelage linearise`: a softmax model becomes one with linear attention. Reads arguments, calls `models`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tutelage.api.arguments import MAX_SEED, check_output_folder
from tutelage.cli.arguments import Precision, given_path
from tutelage.cli.output import AsJson, print_document
from tutelage.display.console import TextConsole
from tutelage.errors import ModelError

__all__ = ["linearise"]


class KernelName(StrEnum):
    """Kernels of linear attention, as `models.KERNELS` has them."""

    rebased = "rebased"
    based = "based"


def linearise(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", callback=given_path)],
    output: Annotated[Path, typer.Option(help="A new folder for the model.", callback=given_path)],
    layers: Annotated[
        str, typer.Option(help="Layers to replace, counted from 0: 0,2-4, or all, or every-other (1, 3, 5, ...).")
    ],
    kernel: Annotated[KernelName, typer.Option(help="What takes the place of exp(q · k).")] = KernelName.rebased,
    feature_size: Annotated[int, typer.Option(help="Entries of a query or key that the kernel sees.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of the new weights.", min=0, max=MAX_SEED)] = 0,
    dtype: Annotated[Precision, typer.Option(help="Type of the written weights.")] = Precision.float32,
    as_json: AsJson = False,
) -> None:
    """Replace softmax attention in some layers by linear attention; all that can be copied is.

    The model then has to learn from the one that it was: recipes/linear_student.toml.
    """
    from tutelage.models import (
        LanguageModel,
        ModelSource,
        base_of,
        check_linearisable,
        export_checked,
        layers_from,
        load_language_model,
        load_tokenizer,
        meta_model_of,
    )
    from tutelage.models import linearise as linearised

    check_output_folder(output)
    if base_of(model) is not None:
        raise ModelError(
            f"{model!r} is an adapter. Merge it into its base first: tutelage export {model} --output DIR."
        )
    source, tokenizer = ModelSource(model, dtype=dtype.value), load_tokenizer(model)
    meta_model = meta_model_of(source, tokenizer)
    check_linearisable(meta_model.module, kernel.value, feature_size)
    chosen = layers_from(layers, int(meta_model.config.num_hidden_layers))
    loaded = load_language_model(source, tokenizer)
    made = linearised(loaded.module, chosen, kernel.value, feature_size, seed)
    written = LanguageModel(made.module, loaded.tokenizer, loaded.stop_ids, name=str(output))
    export_checked(written, made.module.dtype, output)
    kept = [place for place in range(int(loaded.config.num_hidden_layers)) if place not in chosen]
    if as_json:
        counts = {"num_copied": made.num_copied, "num_new": made.num_new, "new": list(made.new)}
        print_document({"folder": str(output), "linear": list(chosen), "softmax": kept, **counts})
        return
    console = TextConsole()
    console.say(f"linear    layers {_listed(chosen)} ({kernel.value}, {feature_size} entries of a key)")
    console.say(f"softmax   layers {_listed(kept)}" if kept else "softmax   none")
    console.say(f"copied    {made.num_copied:,} weights: all but those that are new")
    console.say(f"new       {made.num_new:,} weights: {', '.join(made.new)}")
    console.say(f"written   {output}")


def _listed(layers: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
