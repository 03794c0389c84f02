"""What a researcher does first: a recipe, two model directories, a prompt file, then an evaluation - from the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

from tests.support.tiny_run import save_pair

ROOT = Path(__file__).parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"

# GSM8K's form: a story, a worked solution, and the number after ####.
STORY = "{name} buys {n} boxes of {m} pencils and gives away {k}. How many pencils does {name} have left?"
SMALL = ["steps=3", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=2", "rollout.max_new_tokens=24"]
SMALL += ["policy.kl_radius.steps=2", "runtime.threads=1", "runtime.device=cpu", "data.max_prompt_tokens=1500"]


def tutelage(*arguments: object, folder: Path) -> str:
    command = [sys.executable, "-m", "tutelage", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def overrides(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def write_stories(path: Path, count: int) -> Path:
    rows = []
    for i in range(count):
        n, m, k = 2 + i % 7, 3 + i % 5, 1 + i % 4
        problem = STORY.format(name=("Amir", "Bea", "Chloé")[i % 3], n=n, m=m, k=k)
        solution = f"{n} * {m} = <<{n}*{m}={n * m}>>{n * m}\n{n * m} - {k} = {n * m - k}\n#### {n * m - k}"
        rows.append({"id": f"story/{i}", "problem": problem, "answer": str(n * m - k), "solution": solution})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def check_saved_student(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("2 + 2 =", return_tensors="pt")["input_ids"]
    assert model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] > prompt.shape[1]
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


def test_recipe_to_evaluated_student(tmp_path: Path) -> None:
    student, teacher = save_pair(tmp_path)
    prompts = write_stories(tmp_path / "stories_train.jsonl", 40)
    problems = write_stories(tmp_path / "stories.jsonl", 20)
    told = tutelage(
        "train",
        ROOT / "recipes" / "trb.toml",
        *overrides(f"student={student}", f"teacher={teacher}", f"data={prompts}", *SMALL),
        folder=tmp_path,
    )
    assert "step 3/3" in told and "beta" in told
    saved = tmp_path / "runs" / "trb" / "checkpoints" / "step-000003"
    assert str(saved.relative_to(tmp_path)) in told
    check_saved_student(saved)
    assert (tmp_path / "runs/trb/curves.png").stat().st_size > 10_000

    shown = tutelage(
        "evaluate",
        saved,
        "--task",
        problems,
        "--samples",
        2,
        "--max-new-tokens",
        16,
        "--output",
        "judged",
        folder=tmp_path,
    )
    assert "stories" in shown and "pass@1" in shown
    result = json.loads((tmp_path / "judged" / "stories.json").read_text())
    assert (result["num_problems"], result["num_samples"]) == (20, 2)
    assert len((tmp_path / "judged" / "stories.samples.jsonl").read_text().splitlines()) == 40

    policy = overrides(f"student={student}", f"teacher={teacher}", f"data={prompts}", *SMALL, "policy=teacher")
    told = tutelage("generate", ROOT / "recipes" / "trb.toml", "drawn.jsonl", "--limit", 3, *policy, folder=tmp_path)
    drawn = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert [row["id"] for row in drawn] == ["story/0", "story/1", "story/2"] and "3 samples" in told


def test_verl_parquet_with_an_exact_verifier(tmp_path: Path) -> None:
    """Chat messages and a nested ground truth, as DAPO-Math-17k has them; only the path is given."""
    student, teacher = save_pair(tmp_path)
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"Compute {i} squared."}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(i * i), "style": "rule"},
            "extra_info": {"index": str(i)},
        }
        for i in range(6)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "verl.parquet")
    tutelage(
        "train",
        ROOT / "recipes" / "opd.toml",
        *overrides(f"student={student}", f"teacher={teacher}", "data=verl.parquet", "data.verifier=exact"),
        *overrides(*(setting for setting in SMALL if "kl_radius" not in setting)),
        folder=tmp_path,
    )
    samples = [json.loads(line) for line in (tmp_path / "runs/opd/samples.jsonl").read_text().splitlines()]
    assert samples[0]["answer"] == "0" and "Compute 0 squared." in samples[0]["prompt"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the GSM8K and MATH-500 files are not beside this checkout")
def test_real_gsm8k_prompts_and_benchmarks(tmp_path: Path) -> None:
    student, teacher = save_pair(tmp_path)
    gsm8k = SHARED_DATA / "prompts" / "gsm8k_train.jsonl"
    tutelage(
        "train",
        ROOT / "recipes" / "trb.toml",
        *overrides(f"student={student}", f"teacher={teacher}", f"data={gsm8k}", *SMALL),
        folder=tmp_path,
    )
    saved = tmp_path / "runs/trb/checkpoints/step-000003"
    check_saved_student(saved)
    tasks = [word for name in ("gsm8k", "math500") for word in ("--task", SHARED_DATA / "benchmarks" / f"{name}.jsonl")]
    settings = [
        "--limit",
        20,
        "--samples",
        1,
        "--max-new-tokens",
        24,
        "--max-prompt-tokens",
        1500,
        "--output",
        "judged",
    ]
    tutelage("evaluate", saved, *tasks, *settings, folder=tmp_path)
    for name in ("gsm8k", "math500"):
        assert json.loads((tmp_path / "judged" / f"{name}.json").read_text())["num_problems"] == 20
