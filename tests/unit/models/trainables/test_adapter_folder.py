"""An adapter's folder: opened like a model, made for one base, read by PEFT and by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.support.adapters import adapted, each_method, loaded, logprobs, shake
from tests.support.tiny_models import make_model
from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.errors import ConfigurationError, ModelError
from tutelage.models import (
    AdapterSettings,
    LanguageModel,
    context_length_of,
    export_model,
    meta_model_of,
    save_student,
)
from tutelage.models.trainables.adapter_folder import fingerprint
from tutelage.models.vocabulary import Vocabulary


@each_method
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's wrapper, which only this test makes
def test_an_adapters_folder_opens_like_a_model(tmp_path: Path, base: str, method: Any) -> None:
    model = loaded(base, trainable=AdapterSettings(method, 4, 8), seed=7)
    shake(model)
    for folder in (tmp_path / "saved", tmp_path / "again"):
        folder.mkdir()
        save_student(model, Vocabulary(259, (256, 258), 256), folder)
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names and "config.json" not in names
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base and config["target_modules"] == sorted(config["target_modules"])
    assert "q_proj" in config["target_modules"]

    saved = str(tmp_path / "saved")
    opened = loaded(saved)
    assert opened.stop_ids[:2] == (256, 258), "it stops where it was trained to"
    assert torch.equal(logprobs(opened), logprobs(model))
    assert context_length_of(saved) == context_length_of(base)
    meta_model = meta_model_of(saved, model.tokenizer)
    shapes = {name: weight.shape for name, weight in opened.trainable.parameters().items()}
    assert {name: weight.shape for name, weight in meta_model.trainable.parameters().items()} == shapes

    export_model(opened, torch.float32, tmp_path / "merged")
    plain = LanguageModel(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((logprobs(plain) - logprobs(model)).abs().max()) < 1e-5
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), saved)
    assert torch.equal(logprobs(LanguageModel(theirs.get_base_model())), logprobs(model))


def test_an_adapter_that_peft_wrote_opens_too(tmp_path: Path, base: str) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuner = peft.LoraModel(module, config, "default")
    state = {f"base_model.model.{n}": w for n, w in peft.get_peft_model_state_dict(tuner.model).items()}
    from safetensors.torch import save_file

    (tmp_path / "theirs").mkdir()
    save_file(state, tmp_path / "theirs/adapter_model.safetensors")
    config.base_model_name_or_path = base
    config.save_pretrained(str(tmp_path / "theirs"))
    assert torch.equal(logprobs(loaded(str(tmp_path / "theirs"))), logprobs(LanguageModel(module.eval())))


def test_what_does_not_fit_is_refused(tmp_path: Path, base: str) -> None:
    model = loaded(base, trainable=AdapterSettings("lora", 4, 8))
    folder = tmp_path / "saved"
    folder.mkdir()
    save_student(model, Vocabulary(259, (256,), 256), folder)
    for settings in (
        AdapterSettings("lora", 2),
        AdapterSettings("dora", 4),
        AdapterSettings(target_modules=("q_proj",)),
    ):
        other = loaded(base, trainable=settings).trainable
        with pytest.raises(ModelError, match=r"cannot be put on|is on one side only"):
            other.load(folder)
    save_model(tmp_path / "base", make_tokenizer(), padded_size=264, stop_ids=256, seed=2)
    with pytest.raises(ModelError, match=r"was trained on other weights than .*base' has now"):
        loaded(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not name its model"):
        loaded(str(folder))
    for targets, message in ((("nothing",), r"does not fit base: "), (("lm_head",), "the embeddings or the head")):
        with pytest.raises(ConfigurationError, match=message):
            adapted(make_model("llama", tie=False), target_modules=targets)


def test_a_fingerprint_is_of_the_numbers_and_not_of_their_type(base: str) -> None:
    found = {fingerprint(loaded(base, dtype=dtype).module) for dtype in ("float32", "bfloat16", "float64")}
    assert len(found) == 1
    module = loaded(base).module
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 4] *= 1.01
    assert fingerprint(module) not in found
