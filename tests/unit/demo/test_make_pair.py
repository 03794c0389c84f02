"""The packaged pair: one exact tokenizer, models that load, a teacher that knows and a student that does not yet."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.demo import make_pair, make_problems, student_path, teacher_path

FOLDERS = {"teacher": teacher_path(), "student": student_path()}
FRESH_SEED = 2024


@pytest.fixture(scope="module", params=FOLDERS)
def tokenizer(request):
    return AutoTokenizer.from_pretrained(FOLDERS[request.param])


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(folder) for name, folder in FOLDERS.items()}


@pytest.mark.parametrize(
    "text",
    [
        "Mia has 12 apples. 12+5=17.\n\\boxed{17}",
        "  two  spaces , don 't\t\r\n",
        "Zoë 😀 日本 ½ \x00",
        "",
        " 7",
        "a<|user|>b",
    ],
)
def test_text_round_trips(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_single_tokens(tokenizer) -> None:
    tokens = tokenizer.tokenize("She has 123: 100+23=123, 007")
    assert all(len(token) == 1 for token in tokens if any(character.isdigit() for character in token))


def test_training_text_is_in_known_words(tokenizer) -> None:
    for problem in make_problems(200, FRESH_SEED):
        prompt = make_pair.render_prompt(tokenizer, problem.problem)
        assert len(tokenizer.encode(prompt)) <= 140
        assert len(tokenizer.encode(problem.solution + make_pair.END)) <= make_pair.MAX_NEW_TOKENS


def test_chat_template(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    ]
    text = "<|user|>Be brief.\nOne?<|assistant|>1<|end|><|user|>Two?"
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"


def test_special_tokens_are_known_everywhere(tokenizer, models) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    for model in models.values():
        assert model.config.vocab_size == len(tokenizer)
        for config in (model.config, model.generation_config):
            assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_both_models_share_one_tokenizer() -> None:
    teacher, student = ((folder / "tokenizer.json").read_bytes() for folder in FOLDERS.values())
    assert teacher == student


def test_parameter_counts_and_types(models) -> None:
    assert models["teacher"].num_parameters() == pytest.approx(1.64e6, rel=0.01)
    assert models["student"].num_parameters() == pytest.approx(0.33e6, rel=0.01)
    for model in models.values():
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_packaged_files_are_small() -> None:
    files = [file for folder in FOLDERS.values() for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 9e6


@pytest.mark.runs
def test_teacher_solves_what_the_student_does_not(models) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_path())
    problems = make_problems(20, FRESH_SEED)
    teacher, student = (
        make_pair.evaluate(models[name], tokenizer, problems, num_samples=1, temperature=0.0) for name in FOLDERS
    )
    assert teacher.accuracy >= 0.9
    assert student.accuracy < teacher.accuracy


def test_tokenizer_is_remade_alike() -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_path())
    remade = make_pair.make_tokenizer()
    assert remade.get_vocab() == tokenizer.get_vocab()
    text = make_problems(1, FRESH_SEED)[0].problem
    assert remade.encode(text) == tokenizer.encode(text)


def test_a_full_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="Choose another"):
        make_pair.make_pair(tmp_path, ["student"])


def test_the_folder_imports_without_torch() -> None:
    code = "import sys, tutelage.demo; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
