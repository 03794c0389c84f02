"""What do the layers of a model that mix tokens get, and what do they make of it?  Of a teacher, and of its student.

A student whose linear layers took the place of softmax attention is compared with the model that it was, layer by
layer, both on the hidden states of the latter.

Axis letters: R sequences, T tokens, E width of the model, M layers, N wanted tokens of all sequences laid end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.models.language_model import LanguageModel
from tutelage.models.linear_attention import LinearAttention

__all__ = ["check_comparable_layers", "compared_outputs"]


def check_comparable_layers(student: LanguageModel, teacher: LanguageModel) -> None:
    """Refuse a student without linear layers of ours, or a teacher that does not have layers like its own.

    Raises:
      ConfigurationError: says what was found.
    """
    if not _linear_layers(student):
        raise ConfigurationError(
            f"a loss on layers compares linear attention with what it replaced, but {student.name} "
            f"({type(student.module).__name__}) has none. Make a student with `tutelage linearise`, or drop the loss."
        )
    theirs, ours = _shape(teacher), _shape(student)
    if theirs != ours:
        found = "is several models" if theirs is None else f"has {theirs[0]} layers of width {theirs[1]}"
        expected = "" if ours is None else f", and the student {ours[0]} of width {ours[1]}"
        raise ConfigurationError(
            f"a loss on layers compares with the model that the student was before it was linearised, but the teacher "
            f"{teacher.name} {found}{expected}. Name that model as the teacher, or drop the loss."
        )


def compared_outputs(
    student: LanguageModel, teacher: LanguageModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Outputs of the student's linear layers and of the teacher's in their place, on the teacher's inputs.

    Args:
      sequences: token ids, at least one each.
      starts: for each, the first position that is wanted.
    Returns:
      the student's, with a graph to its linear layers' parameters, and the teacher's: [M, N, E] each, float32.
    """
    layers = _linear_layers(student)
    with torch.no_grad(), _recorded(teacher, list(layers)) as recorded, teacher._precision():
        teacher._module_forward.read(sequences, [0] * len(sequences), teacher.device)
    wanted_RT = torch.zeros(recorded[next(iter(layers))][0].shape[:2], dtype=torch.bool, device=student.device)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        wanted_RT[row, start : len(sequence)] = True
    ours, theirs = [], []
    for place, mixer in layers.items():
        given_RTE, output_RTE = (each.to(student.device) for each in recorded[place])
        with student._precision():
            # Padding is on the right, and nothing before it sees it.
            ours.append(mixer(given_RTE.to(student.module.dtype))[wanted_RT].float())
        theirs.append(output_RTE[wanted_RT].float())
    return torch.stack(ours), torch.stack(theirs)


def _linear_layers(model: LanguageModel) -> dict[int, Any]:
    mixers = model.recurrent_layers.by_layer
    return {place: mixer for place, mixer in mixers.items() if isinstance(mixer, LinearAttention)}


def _layers(model: LanguageModel) -> Any:
    return getattr(getattr(model.module, "base_model", None), "layers", ())


def _shape(model: LanguageModel) -> tuple[int, int] | None:
    """Number of layers and width; None of a model that is several."""
    if len(model.members) > 1 or not _layers(model):
        return None
    return int(model.config.num_hidden_layers), int(model.config.hidden_size)


@contextmanager
def _recorded(model: LanguageModel, places: Sequence[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Inside, what the attention of these layers is given and gives in the module's own forward: [R, T, E] each."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = []
    for place in places:

        def record(_: Any, args: Any, kwargs: Any, output: Any, place: int = place) -> None:
            given = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            found[place] = given, output[0] if isinstance(output, tuple) else output

        attention = model.recurrent_layers.by_layer.get(place) or _layers(model)[place].self_attn
        hooks.append(attention.register_forward_hook(record, with_kwargs=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
