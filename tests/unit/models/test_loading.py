"""A model in memory is the model on disk: what is missing, left over, of another shape or no number is refused."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import SHAPE
from tests.support.tiny_run import make_tokenizer, save_model
from tutelage.errors import ConfigurationError, ModelError
from tutelage.models import (
    ModelSource,
    check_unquantised,
    load_language_model,
    load_tokenizer,
    meta_model_of,
    weights_fingerprint,
)

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as it should be."""
    return save_model(
        tmp_path_factory.mktemp("whole") / "model", make_tokenizer(), padded_size=264, stop_ids=256, seed=0
    )


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return spoil


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def index(**files: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "elsewhere.bin").write_bytes(b"")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return spoil


def prefixed(prefix: str) -> Spoil:
    return weights(lambda state: {prefix + name: weight for name, weight in state.items()})


def typed(kind: torch.dtype) -> Spoil:
    return weights(lambda state: {**state, "model.norm.weight": state["model.norm.weight"].to(kind)})


UP = "model.layers.0.mlp.up_proj.weight"
FITS: dict[str, tuple[Spoil, str]] = {
    "left by torch.compile": (prefixed("_orig_mod."), "begin with '_orig_mod.', as torch.compile leaves them"),
    "left by DDP": (prefixed("module."), "strip 'module.' from the names"),
    "a layer less": (
        weights(lambda state: {name: weight for name, weight in state.items() if ".layers.1." not in name}),
        r"lack model.layers.1.input_layernorm.weight, .* and \d+ more",
    ),
    "one tensor less": (weights(lambda state: {n: w for n, w in state.items() if n != UP}), f"lack {UP}, which its"),
    "no head": (config(tie_word_embeddings=False), "lack lm_head.weight"),
    "fewer layers in the configuration": (
        config(num_hidden_layers=1, layer_types=None),
        "hold model.layers.1.*no place",
    ),
    "a tensor more": (
        weights(lambda state: {**state, "model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}),
        "hold model.layers.0.mlp.up_proj.weight_scale, for which",
    ),
    "another shape": (
        weights(lambda state: {**state, UP: state[UP][:-8].contiguous()}),
        rf"hold {UP} of shape \[40, 32\], not \[48, 32\]",
    ),
    "another width": (config(hidden_size=64), "of shape .* more of another shape"),
    "integers": (typed(torch.int8), "holds model.norm.weight as int8.* quantization_config"),
    "complex numbers": (typed(torch.complex64), "holds model.norm.weight as complex64"),
    "eight bits": (typed(torch.float8_e4m3fn), "holds model.norm.weight as float8_e4m3fn"),
    "a width beyond any memory": (config(hidden_size=10**9), "weights of .*model' are not those|no model could be"),
    "layers beyond any memory": (
        config(num_hidden_layers=10**9),
        "num_hidden_layers = 1000000000; expected 0 to 10000",
    ),
    "labels beyond any memory": (config(num_labels=10**9), "num_labels = 1000000000"),
    "a negative vocabulary": (config(vocab_size=-3), "could be loaded from"),
    "an index that leaves the folder": (
        index(a="../model.safetensors"),
        "names '../model.safetensors'; expected plain",
    ),
    "an index of pickles": (index(a="elsewhere.bin"), "names 'elsewhere.bin'; expected plain names of"),
    "an index of a missing file": (
        index(a="part.safetensors", b="gone.safetensors"),
        "'gone.safetensors', which is not",
    ),
    "a file named elsewhere": (config(transformers_weights="../x.safetensors"), "expected plain names"),
    "an index without a map": (index(), "no `weight_map`"),
    "an index that is none": (text("model.safetensors.index.json", "[]"), ""),
    "a file of another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        "neither model.safetensors nor model.safetensors.index.json, only consolidated.safetensors",
    ),
    "a model and an adapter": (text("adapter_config.json", "{}"), "not clear which one is meant"),
    "code of its own": (
        config(model_type="strange", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}),
        "Read that code and set `trust_remote_code = true`",
    ),
}


@pytest.mark.sweeps
@pytest.mark.parametrize("case", FITS)
@pytest.mark.parametrize("load", [load_language_model, meta_model_of])
def test_files_that_are_not_the_configurations_model_are_refused(folder: Path, case: str, load: Any) -> None:
    spoil, message = FITS[case]
    spoil(folder)
    if not message:  # the single file goes before an index, which is then not read
        load(str(folder), make_tokenizer())
        return
    with pytest.raises(ModelError, match=message) as refusal:
        load(str(folder), make_tokenizer())
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 800


DAMAGED = ["", "{", "[]", "null", '"text"', "\x00\x01", "[" * 3000, '{"model_type": 3}', '{"a": 1e999}']


@pytest.mark.sweeps
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_one_line(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    try:
        load_language_model(str(folder), load_tokenizer(str(folder)))
    except ModelError as refusal:
        assert "\n" not in str(refusal) and "model" in str(refusal)
    else:
        assert name not in ("config.json", "tokenizer.json")


NONSENSE = [
    {"vocab_size": "many"}, {"hidden_size": None}, {"num_hidden_layers": 1.5}, {"num_attention_heads": 0},
    {"head_dim": -8}, {"rope_parameters": "yarn"}, {"rope_parameters": {"rope_type": "nothing"}},
    {"hidden_act": "none"},
    {"architectures": 7}, {"model_type": ["qwen3"]}, {"layer_types": ["full_attention", 3]}, {"eos_token_id": {"a": 1}},
    {"eos_token_id": "x"}, {"max_position_embeddings": "long"}, {"rms_norm_eps": [1]}, {"text_config": 3},
    {"quantization_config": 3}, {"quantization_config": {"quant_method": "nothing"}}, {"auto_map": 3}, {"dtype": 7},
    {"attention_bias": True}, {"num_key_value_heads": 3}, {"transformers_weights": "../x.bin"},
]  # fmt: skip


@pytest.mark.sweeps
@pytest.mark.parametrize("changes", NONSENSE, ids=[next(iter(changes)) for changes in NONSENSE])
def test_nonsense_in_a_configuration_is_one_line_or_of_no_effect(folder: Path, changes: dict[str, Any]) -> None:
    before = load_language_model(str(folder), make_tokenizer()).module.state_dict()
    config(**changes)(folder)
    for load in (meta_model_of, load_language_model):
        try:
            model = load(str(folder), make_tokenizer())
        except ModelError as refusal:
            assert "\n" not in str(refusal)
        else:
            shapes = {name: weight.shape for name, weight in model.module.state_dict().items()}
            assert shapes == {name: weight.shape for name, weight in before.items()}


def test_several_files_are_read_by_their_index(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    loaded = load_language_model(str(folder), make_tokenizer()).module.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in state.items())
    save_file(state, folder / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="and so does another file of the model"):
        load_language_model(str(folder), make_tokenizer())


def test_pickled_weights_are_looked_at_as_well(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    load_language_model(ModelSource(str(folder), allow_pickle=True), make_tokenizer())
    del state[UP]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"lack {UP}"):
        load_language_model(ModelSource(str(folder), allow_pickle=True), make_tokenizer())


def test_parts_for_other_senses_are_left_aside(folder: Path) -> None:
    weights(lambda state: {**state, "vision_tower.blocks.0.attn.weight": torch.ones(2, 2)})(folder)
    load_language_model(str(folder), make_tokenizer())


def test_a_mixture_of_experts_is_read_as_its_files_name_it(tmp_path: Path) -> None:
    """Files hold an expert each, the module all of them as one: names are compared as the library reads them."""
    shape = {**SHAPE, "vocab_size": 264, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    module = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**shape, eos_token_id=256))
    module.save_pretrained(tmp_path)
    loaded = load_language_model(str(tmp_path), make_tokenizer()).module.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in module.state_dict().items())
    weights(lambda state: {n: w for n, w in state.items() if ".experts.3.up_proj" not in n})(tmp_path)
    with pytest.raises(ModelError):
        load_language_model(str(tmp_path), make_tokenizer())


def test_one_weight_that_is_not_a_number_is_found_wherever_it_is(folder: Path) -> None:
    def spoil(state: dict[str, Any]) -> dict[str, Any]:
        state["model.embed_tokens.weight"][263, 5] = float("inf")  # a padding row, which no token reads
        return state

    weights(spoil)(folder)
    with pytest.raises(ModelError, match="NaN or infinite, such as model.embed_tokens.weight"):
        load_language_model(str(folder), make_tokenizer())


QUANTISED = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("changes", [{"quantization_config": QUANTISED}, {"text_config": {"quantization_config": 1}}])
def test_a_student_that_comes_quantised_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    check_unquantised(str(folder))
    config(**changes)(folder)
    with pytest.raises(ConfigurationError, match="quantised already.* before it was quantised"):
        check_unquantised(str(folder))


@pytest.mark.parametrize(
    ("quantization", "line"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "pip install"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}, "pip install"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    folder: Path, quantization: dict[str, Any], line: str
) -> None:
    config(quantization_config=quantization)(folder)
    for load in (meta_model_of, load_language_model):
        with pytest.raises(ModelError, match=f"needs a package that is not installed.*{line} ") as refusal:
            load(str(folder), make_tokenizer())
        assert "\n" not in str(refusal.value)


def test_a_missing_attention_kernel_is_named_with_the_line_that_installs_it(folder: Path) -> None:
    for load in (meta_model_of, load_language_model):
        with pytest.raises(ModelError, match="Install it: pip install flash-attn"):
            load(ModelSource(str(folder), attention="flash_attention_2"), make_tokenizer())


def test_a_saved_model_has_the_permissions_of_its_folder(whole: Path, tmp_path: Path) -> None:
    from tutelage.models import export_model

    tmp_path.chmod(0o755)
    model = load_language_model(str(whole), load_tokenizer(str(whole)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o755)
    export_model(model, torch.float32, tmp_path / "out")
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {0o644}


def test_a_fingerprint_of_a_damaged_folder_is_one_line(folder: Path) -> None:
    text("config.json", "[]")(folder)
    with pytest.raises(ModelError, match="expected a JSON object"):
        weights_fingerprint(str(folder))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "could be loaded"),
    ],
)
def test_broken_model_directories(tmp_path, spoil, message) -> None:
    folder = save_model(tmp_path / "model", make_tokenizer(), padded_size=264, stop_ids=256, seed=0)
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        load_language_model(str(folder), make_tokenizer())


def test_a_missing_directory_is_not_looked_up_on_the_hub(tmp_path) -> None:
    for load in (load_tokenizer, lambda path: load_language_model(path, None)):
        with pytest.raises(ModelError, match="does not exist"):
            load(str(tmp_path / "nothing"))
