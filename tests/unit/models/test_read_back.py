"""What was written is read back and compared with memory; what will be written is tried before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import SHAPE, make_model
from tests.support.tiny_run import make_tokenizer
from tutelage.errors import ModelError
from tutelage.models import (
    AdapterSettings,
    LanguageModel,
    Vocabulary,
    check_savable,
    check_saved,
    export_model,
    is_all_finite,
    load_language_model,
    load_tokenizer,
    save_student,
)
from tutelage.models.trainables import Base

VOCABULARY = Vocabulary(259, stop_ids=(256, 258), stop_id=256)


def student_of(module: Any, method: Any = None) -> LanguageModel:
    model = LanguageModel(module, make_tokenizer(), (256,), "the student")
    if method is not None:
        model.trainable = AdapterSettings(method, rank=2, alpha=4).put_on(module, Base("base"), 0)
        for weight in model.trainable_state().values():
            weight.add_(0.1)
    return model


@pytest.fixture(params=[None, "lora", "rslora", "dora"])
def student(request: pytest.FixtureRequest) -> LanguageModel:
    return student_of(make_model(vocab_size=264, dtype=torch.bfloat16), request.param)


def test_every_student_is_read_back_as_it_is(student: LanguageModel, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in student.module.state_dict().items()}
    check_savable(student, VOCABULARY)
    save_student(student, VOCABULARY, tmp_path)
    check_saved(student, VOCABULARY, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in student.module.state_dict().items())


@pytest.mark.sweeps
def test_an_architecture_whose_files_have_other_names_is_read_back(architecture: str, tmp_path: Path) -> None:
    for number, tie in enumerate((True, False)):
        model = student_of(make_model(architecture, vocab_size=264, tie=tie, dtype=torch.float32))
        check_savable(model, VOCABULARY)
        save_student(model, VOCABULARY, tmp_path / str(number))
        check_saved(model, VOCABULARY, tmp_path / str(number))
    shape = {**SHAPE, "vocab_size": 264, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = student_of(transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**shape)).eval())
    check_savable(model, VOCABULARY)
    save_student(model, VOCABULARY, tmp_path / "experts")
    check_saved(model, VOCABULARY, tmp_path / "experts")


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def change_weights(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, metadata={"format": "pt"})

    return spoil


PLAIN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (
        change_weights("model.safetensors", lambda s: s["model.norm.weight"].add_(1)),
        "other numbers in model.norm",
    ),
    "a name": (change_weights("model.safetensors", lambda s: s.pop("model.norm.weight")), "lack model.norm.weight"),
    "a rotary base": (
        change_json("config.json", rope_parameters={"rope_type": "default", "rope_theta": 2.0}),
        "the same weights compute something else",
    ),
    "an activation": (change_json("config.json", hidden_act="relu"), "the same weights compute something else"),
    "a stop id": (change_json("generation_config.json", eos_token_id=256), r"stop ids \[256\], not \[256, 258\]"),
}
ADAPTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (
        change_weights("adapter_model.safetensors", lambda s: next(iter(s.values())).add_(1)),
        "does not hold the adapter in memory",
    ),
    "a scale": (change_json("adapter_config.json", lora_alpha=400), "the same weights compute something else"),
    "a module": (change_json("adapter_config.json", target_modules=["q_proj"]), "on one side only"),
    "a stop id": (change_json("generation_config.json", eos_token_id=256), r"stop ids \[256\]"),
}


@pytest.mark.parametrize(("method", "case"), [(None, case) for case in PLAIN] + [("lora", case) for case in ADAPTED])
def test_a_folder_that_is_not_the_model_in_memory_is_refused(method: str | None, case: str, tmp_path: Path) -> None:
    model = student_of(make_model(vocab_size=264, dtype=torch.float32), method)
    save_student(model, VOCABULARY, tmp_path)
    spoil, message = (PLAIN if method is None else ADAPTED)[case]
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        check_saved(model, VOCABULARY, tmp_path)


def test_generation_parameters_that_cannot_be_saved_are_dropped_aloud(student: LanguageModel, tmp_path: Path) -> None:
    configuration = student.module.generation_config
    configuration.temperature, configuration.top_p, configuration.do_sample = 0.9, 0.6, False
    student.module.config.repetition_penalty = 1.5  # belongs elsewhere
    with pytest.warns(UserWarning, match="does not save repetition_penalty, temperature, top_p"):
        check_savable(student, VOCABULARY)
    save_student(student, VOCABULARY, tmp_path)
    check_saved(student, VOCABULARY, tmp_path)


def test_sampling_parameters_that_can_be_saved_stay(tmp_path: Path) -> None:
    model = student_of(make_model(vocab_size=264, dtype=torch.float32))
    configuration = model.module.generation_config
    configuration.temperature, configuration.do_sample = 0.9, True
    check_savable(model, VOCABULARY)
    save_student(model, VOCABULARY, tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.9


def test_what_cannot_be_written_is_known_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student_of(make_model(vocab_size=264, dtype=torch.float32))
    monkeypatch.setattr(type(model.module.config), "to_json_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match="would hold cannot be written .*division by zero"):
        check_savable(model, VOCABULARY)


def test_a_tokenizer_that_is_read_back_differently_is_known_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = student_of(make_model(vocab_size=264, dtype=torch.float32))
    own = model.tokenizer.save_pretrained

    def shortened(folder: Path) -> None:
        own(folder)
        (Path(folder) / "chat_template.jinja").unlink()

    monkeypatch.setattr(model.tokenizer, "save_pretrained", shortened)
    with pytest.raises(ModelError, match="another chat template"):
        check_savable(model, VOCABULARY)


def test_an_export_that_its_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    module = make_model(vocab_size=264, dtype=torch.float32)
    module.model.norm.weight.data[0] = 1e6  # more than float16 has
    with pytest.raises(ModelError, match="NaN or infinite, such as model.norm.weight.*float16"):
        export_model(student_of(module), torch.float16, tmp_path / "out")


def test_a_quantised_model_is_not_exported(tmp_path: Path) -> None:
    model = student_of(make_model(vocab_size=264, dtype=torch.float32))
    model.module.hf_quantizer = object()
    with pytest.raises(ModelError, match="quantised weights, which cannot be written"):
        export_model(model, torch.float32, tmp_path / "out")


BEYOND = {
    "biases": change_json("adapter_config.json", bias="lora_only"),
    "whole modules": change_json("adapter_config.json", modules_to_save=["lm_head"]),
    "tokens": change_json("adapter_config.json", trainable_token_indices=[1]),
    "a base that was changed": change_json("adapter_config.json", init_lora_weights="pissa"),
    "a weight of the base": change_weights(
        "adapter_model.safetensors", lambda s: s.update({"base_model.model.lm_head.weight": torch.ones(264, 32)})
    ),
    "integers": change_weights(
        "adapter_model.safetensors", lambda s: s.update({name: weight.to(torch.int8) for name, weight in s.items()})
    ),
    "numbers that are none": change_weights(
        "adapter_model.safetensors", lambda s: next(iter(s.values())).fill_(float("nan"))
    ),
    "no JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "another kind": change_json("adapter_config.json", peft_type="IA3"),
    "no kind": change_json("adapter_config.json", peft_type="NOTHING"),
    "a rank of no number": change_json("adapter_config.json", r="many"),
    "a rank below 1": change_json("adapter_config.json", r=-1),
    "a base of no name": change_json("adapter_config.json", base_model_name_or_path=3),
    "a note of the base that is none": lambda folder: (folder / "base.json").write_text("[]"),
    "torn weights": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"torn"),
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
}


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter")
    save_student(student_of(make_model(vocab_size=264, dtype=torch.float32)), VOCABULARY, place / "base")
    base = str(place / "base")
    model = load_language_model(base, load_tokenizer(base), trainable=AdapterSettings("lora", rank=2))
    (place / "adapter").mkdir()
    save_student(model, VOCABULARY, place / "adapter")
    load_language_model(str(place / "adapter"), load_tokenizer(str(place / "adapter")))  # it opens
    return place / "adapter"


@pytest.mark.sweeps
@pytest.mark.parametrize("case", BEYOND)
def test_an_adapter_that_is_damaged_or_more_than_low_rank_is_one_line(
    case: str, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))
    BEYOND[case](folder)
    with pytest.raises(ModelError, match="adapter") as refusal:
        load_language_model(str(folder), load_tokenizer(str(folder)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_that_is_not_finite_is_found_among_many(bad: float, dtype: torch.dtype) -> None:
    tensors = [torch.full((7, 5), torch.finfo(dtype).max, dtype=dtype), torch.zeros(0), torch.ones(3, dtype=torch.int8)]
    assert is_all_finite(tensors)
    tensors[0][3, 2] = bad
    assert not is_all_finite(tensors)
