"""A setup broken in one way gives one verdict, and the healthy ones give none."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.support.fake_server import Fake, student_server, vllm_of
from tests.support.findings import assembly, found
from tests.support.reward_models import save_reward_model
from tests.support.tiny_run import CHAT_TEMPLATE, make_tokenizer, save_model, write_run_file
from tutelage.cli import app
from tutelage.cli.checkup import print_finding
from tutelage.config import RunConfig, load_config, resolve_config
from tutelage.config.models import load_meta_models
from tutelage.demo import problem_lines, student_path, teacher_path
from tutelage.models import both_readings, load_language_model, load_tokenizer
from tutelage.preflight import CHEAP, COSTLY, Finding, Verdict, budget, early_warnings, examine, rating, trial
from tutelage.preflight.examine import BUDGET, RATED, RATED_COSTLY, TEXTS
from tutelage.rollout import reading
from tutelage.rollout.decoding import MAX_DRAFT_LENGTH

END_OF_TEXT, IM_END = 256, 258


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """The tiny pair's run with some fields set, evaluated on problems of its own; an answer fits into 10 tokens."""
    path = write_run_file(tmp_path)
    problems = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(50, 53)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    evaluated = f'path = "{tmp_path / "prompts.jsonl"}"'
    assert evaluated in path.read_text()
    path.write_text(path.read_text().replace(evaluated, f'path = "{tmp_path / "problems.jsonl"}"'))
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: load_config(path, list(overrides))


def save(folder: Path, whose: str, **changes: Any) -> None:
    """Replace one model of the tiny pair."""
    tokenizer = changes.pop("tokenizer", None) or make_tokenizer()
    shutil.rmtree(folder / whose)
    settings = {"padded_size": 264, "stop_ids": END_OF_TEXT, "seed": 5, "max_position_embeddings": 2048}
    save_model(folder / whose, tokenizer, **(settings | changes))


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


# --- healthy setups --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("packaged")
    (folder / "prompts.jsonl").write_text(problem_lines(16, 5))
    return resolve_config(
        {
            "output": str(folder / "run"),
            "student": str(student_path()),
            "teacher": str(teacher_path()),
            "data": str(folder / "prompts.jsonl"),
            "rollout": {"max_new_tokens": 90, "prompts_per_step": 2, "samples_per_prompt": 1},
            "runtime": {"device": "cpu"},
        }
    )


@pytest.mark.runs
def test_the_packaged_pair_is_healthy(packaged: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "NUM_SAMPLES", 1)
    findings = list(examine(packaged))
    assert [finding.check for finding in findings] == [*CHEAP, *COSTLY]
    assert [(f.check, f.text) for f in findings if f.verdict != Verdict.ok] == []
    texts = {finding.check: finding.text for finding in findings}
    assert "accepts all of 16 reference answers and all of 16 reference solutions" in texts["verifier"]
    assert texts["pass@1"].startswith("on 16 problems: teacher ")


def test_the_tiny_pair_has_nothing_that_train_would_mention(run: Callable[..., RunConfig]) -> None:
    assert list(early_warnings(run())) == []
    findings = {finding.check: finding for finding in examine(run(), quick=True)}
    assert {finding.verdict for finding in findings.values()} == {Verdict.ok}
    assert "student 264, teacher 272; 259 tokens; what lies beyond" in findings["vocabulary"].text
    assert (
        f"merged into one event '<|endoftext|>' ({END_OF_TEXT}), '<|im_end|>' ({IM_END})" in findings["stop ids"].text
    )
    assert "not its own stop '<|endoftext|>' (256) but the teacher's" in findings["end of answer"].text


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_other_tokenizers_are_one_error_and_the_rest_is_skipped(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    save(tmp_path, "teacher", tokenizer=make_tokenizer(extra=("Ġmore",)))
    findings = list(examine(run()))
    verdicts = [finding.verdict for finding in findings]
    assert verdicts.count(Verdict.error) == 1 and verdicts[1] == Verdict.error
    assert "different tokenizers" in findings[1].text
    assert set(verdicts[2:]) == {Verdict.skipped}


def test_a_vocabulary_that_is_padded_too_little(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    save(tmp_path, "teacher", padded_size=257)
    finding = found(run(), "vocabulary")
    assert finding.verdict == Verdict.error and "2 of the tokenizer's 259 tokens have no row" in finding.text
    assert {f.verdict for f in examine(run()) if f.check in COSTLY} == {Verdict.skipped}
    plain = found(run("data.use_chat_template=false"), "vocabulary")
    assert plain.verdict == Verdict.warning and plain.text.endswith("the prompts hold them 0 times")


def test_stop_ids_without_a_common_one(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    save(tmp_path, "teacher", tokenizer=make_tokenizer(eos="<|im_end|>"), stop_ids=IM_END)
    finding = found(run(), "stop ids")
    assert finding.verdict == Verdict.warning and "nothing in common" in finding.text
    assert list(early_warnings(run())) == [f"stop ids: {finding.text}. {finding.remedy}"]


def test_a_model_that_never_stops(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    save(tmp_path, "student", tokenizer=tokenizer, stop_ids=None)
    finding = found(run(), "stop ids")
    assert finding.verdict == Verdict.warning and finding.text.startswith("no stop id: student (student none; teacher")
    save(tmp_path, "teacher", tokenizer=tokenizer, stop_ids=None)
    finding = found(run(), "stop ids")
    assert finding.verdict == Verdict.warning and finding.text.startswith("no model has a stop id")


def test_another_chat_template(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    tokenizer = make_tokenizer(eos="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant: ")
    save(tmp_path, "teacher", tokenizer=tokenizer, stop_ids=[IM_END, END_OF_TEXT])
    finding = found(run(), "prompts")
    assert finding.verdict == Verdict.warning
    assert finding.text.endswith("the student reads '\\n', the teacher ': '")
    assert [line.split(":")[0] for line in finding.details] == [
        "student, as text",
        "student, as 33 tokens",
        "teacher, as text",
        "teacher, as 34 tokens",
    ]
    assert "What is 0 + 0?" in finding.details[0] and "'<|im_start|>'" in finding.details[1]
    wanted = found(run("data.teacher_system_prompt=Be brief."), "prompts")
    assert wanted.verdict == Verdict.ok and "as [data] asks for" in wanted.text


def test_a_chat_teacher_that_reads_plain_text(run: Callable[..., RunConfig]) -> None:
    finding = found(run("data.use_chat_template=false"), "prompts")
    assert finding.verdict == Verdict.warning and "the teacher's chat template is not used" in finding.text
    assert "no chat template" in found(run("data.use_chat_template=false"), "end of answer").text


def test_a_prompt_that_begins_twice(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.chat_template = "{{- '<|im_start|>' -}}" + CHAT_TEMPLATE
    for whose in ("student", "teacher"):
        save(tmp_path, whose, tokenizer=tokenizer, seed=len(whose))
    findings = [finding for finding in examine(run(), quick=True) if finding.verdict == Verdict.warning]
    assert "prompts" in [each.check for each in findings if "beginning-of-sequence token of" in each.text]


def test_a_template_that_leaves_out_the_question_or_the_system_prompt(
    run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    frame = "{{ '<|im_start|>' }}"
    for whose in ("student", "teacher"):
        (tmp_path / whose / "chat_template.jinja").write_text(frame + "{{ messages[-1]['content'] }}")
    findings = {each.check: each for each in examine(run("data.system_prompt=Box it."), quick=True)}
    assert findings["prompts"].verdict == Verdict.warning
    assert "leaves out the system message of 12 of 12 prompts" in findings["prompts"].text
    for whose in ("student", "teacher"):
        (tmp_path / whose / "chat_template.jinja").write_text(frame)
    findings = {each.check: each for each in examine(run(), quick=True)}
    assert findings["prompts"].verdict == Verdict.error
    assert "writes out problem sum/0 without its question" in findings["prompts"].text


def test_a_template_that_ends_answers_with_no_stop_token(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    save(tmp_path, "teacher", stop_ids=END_OF_TEXT)
    finding = found(run(), "end of answer")
    assert finding.verdict == Verdict.warning
    assert "'<|im_end|>\\n', which holds no stop id of either model ('<|endoftext|>' (256))" in finding.text


# --- data ------------------------------------------------------------------------------------------------------------


def test_what_is_remarked_while_models_are_read_is_a_line(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read by the check that needs them first, and not before there is a finding."""

    def read(*given: Any) -> Any:
        warnings.warn("an odd model", stacklevel=2)
        return load_meta_models(*given)

    monkeypatch.setattr("tutelage.config.assembly.load_meta_models", read)
    lines = [
        (finding.check, finding.verdict) for finding in examine(run(), quick=True) if finding.text == "an odd model"
    ]
    assert lines == [("tokenizers", Verdict.warning)]


def test_refusals_of_the_run_file_are_a_line(run: Callable[..., RunConfig]) -> None:
    finding = next(examine(run("rollout.support_size=4"), quick=True))
    assert (finding.check, finding.verdict) == ("run file", Verdict.error)
    assert "rollout.support_size is 4" in finding.text


def test_an_output_folder_that_exists(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert found(run(), "run file").verdict == Verdict.warning


def test_answers_that_do_not_fit(run: Callable[..., RunConfig]) -> None:
    findings = examine(run("rollout.max_new_tokens=9999"), quick=True)
    (finding,) = [f for f in findings if f.verdict != Verdict.ok]
    assert (finding.check, finding.verdict) == ("contexts", Verdict.error)
    finding = found(run("rollout.max_new_tokens=1"), "lengths")
    assert finding.verdict == Verdict.warning and "100% of the reference answers would be cut" in finding.text
    assert finding.remedy == "Set rollout.max_new_tokens to at least 3."


def test_prompts_that_are_left_out_are_mentioned_once(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    rewrite(tmp_path / "prompts.jsonl", lambda row: row | ({"problem": "x" * 200} if row["id"] == "sum/3" else {}))
    config = run("data.max_prompt_tokens=100", "evaluation.sets=[]")
    remarks = [f for f in examine(config, quick=True) if f.verdict == Verdict.warning]
    assert len(remarks) == 1 and remarks[0].text.startswith("1 of 12 prompts are longer")


@pytest.mark.parametrize(("column", "reason"), [("problem", "repeats the prompt"), ("id", "holds the problems' ids")])
def test_a_wrong_answer_column(run: Callable[..., RunConfig], column: str, reason: str) -> None:
    finding = found(run(f"data.answer_column={column}"), "verifier")
    assert finding.verdict == Verdict.error and f"data.answer_column '{column}' {reason}" in finding.text


def test_an_answer_column_that_the_solutions_contradict(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    rewrite(tmp_path / "prompts.jsonl", lambda row: row | {"solution": f"so \\boxed{{{row['answer']}}}"})
    assert "all of 12 reference solutions" in found(run(), "verifier").text
    rewrite(tmp_path / "prompts.jsonl", lambda row: row | {"wrong": str(int(row["answer"]) + 1)})
    finding = found(run("data.answer_column=wrong"), "verifier")
    assert finding.verdict == Verdict.error and "rejects 12 of 12 of the data set's own solutions" in finding.text
    rewrite(tmp_path / "prompts.jsonl", lambda row: row | {"wrong": "7" if row["id"] == "sum/0" else row["answer"]})
    finding = found(run("data.answer_column=wrong"), "verifier")
    assert finding.verdict == Verdict.warning and "such as the solution of sum/0" in finding.text


def test_answers_may_stand_in_the_prompt(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    rewrite(
        tmp_path / "prompts.jsonl",
        lambda row: row | {"problem": f"Which? A) all {row['id']} B) none", "answer": f"all {row['id']}"},
    )
    assert found(run("data.verifier=exact"), "verifier").verdict == Verdict.ok


def test_answers_that_are_all_the_same(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    rewrite(tmp_path / "prompts.jsonl", lambda row: row | {"answer": "5"})
    finding = found(run(), "verifier")
    assert finding.verdict == Verdict.warning and "the first 12 problems all have the answer '5'" in finding.text


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (False, "rejects 12 of 12 of the data set's own answers"),
        (True, "accepts 12 of 12 answers that belong to other"),
    ],
)
def test_a_verifier_that_cannot_tell(run: Callable[..., RunConfig], tmp_path: Path, verdict: bool, text: str) -> None:
    (tmp_path / f"always_{verdict}.py".lower()).write_text(f"def check(response, answer):\n    return {verdict}\n")
    config = run(f"data.verifier=always_{verdict}:check".lower())
    finding = found(config, "verifier")
    assert finding.verdict == Verdict.error and text in finding.text
    assert [line for line in early_warnings(config) if line.startswith("verifier")] == []  # not called by train


def test_prompts_without_answers_are_not_judged(run: Callable[..., RunConfig]) -> None:
    config = run("data.verifier=", "evaluation.sets=[]")
    assert found(config, "verifier").verdict == found(config, "pass@1").verdict == Verdict.skipped


def test_a_teacher_that_is_a_server_costs_no_memory_here_and_needs_no_weights(
    run: Callable[..., RunConfig], tmp_path: Path
) -> None:
    here = budget.forecast(assembly(run("policy=student")))
    (tmp_path / "teacher" / "model.safetensors").unlink()
    served = run("policy=student", "divergence.support=teacher_top_k", "teacher.server=http://localhost:1")
    there = budget.forecast(assembly(served))
    assert all(parts["teacher"] == 0 < here[phase]["teacher"] for phase, parts in there.items())
    for name in CHEAP:
        assert found(served, name).verdict in (Verdict.ok, Verdict.warning)


def test_servers_are_asked(run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is it there, is it called as the run file calls it, does it take weights?"""
    monkeypatch.setenv("no_proxy", "*")
    path = str(tmp_path / "teacher")
    model = load_language_model(path, load_tokenizer(path))
    teacher, student = Fake(vllm_of(model, context=512)), student_server(lambda _: model)
    drawing = ["rollout.engine=vllm", f"vllm.server={student.url}", "vllm.retries=0"]
    config = run(
        "policy=student",
        "divergence.support=teacher_top_k",
        f"teacher.server={teacher.url}",
        "teacher.retries=0",
        *drawing,
    )
    (finding,) = [each for each in examine(config, quick=True) if each.check == "servers"]
    assert finding.verdict == Verdict.warning and finding.text.endswith("and the server's model is called 'm'")
    assert (
        "answers alike when asked twice" in finding.details[0] and "takes the student's weights" in finding.details[1]
    )
    teacher.close()
    (finding,) = [each for each in examine(config, quick=True) if each.check == "servers"]
    assert finding.verdict == Verdict.error and "gave no answer: asked once" in finding.text
    (finding,) = [each for each in examine(run(*drawing), quick=True) if each.check == "servers"]
    assert finding.verdict == Verdict.ok
    student.close()


def test_the_server_of_each_route_is_asked(
    run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    path = str(tmp_path / "teacher")
    fake = Fake(vllm_of(load_language_model(path, load_tokenizer(path)), context=512))
    other = shutil.copytree(path, tmp_path / "code", ignore=shutil.ignore_patterns("*.safetensors"))
    rows = [{"problem": "1 + 1?", "answer": "2", "teacher": name} for name in ("code", "")]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run(
        "policy=student",
        "divergence.support=teacher_top_k",
        f"data={tmp_path / 'named.jsonl'}",
        f"teacher.routes.code.path={other}",
        f"teacher.routes.code.server={fake.url}",
        "teacher.retries=0",
    )
    (finding,) = [each for each in examine(config, quick=True) if each.check == "servers"]
    assert finding.details == (f"{fake.url} serves 'm' as the teacher 'code', and answers alike when asked twice",)
    assert "teacher.routes.code.path is" in finding.text and finding.verdict == Verdict.warning
    assert budget.forecast(assembly(config))["rollout"]["teacher"] > 0, "the teacher without a name is here"
    fake.close()
    (finding,) = [each for each in examine(config, quick=True) if each.check == "servers"]
    assert finding.verdict == Verdict.error and "gave no answer: asked once" in finding.text


# --- memory and time -------------------------------------------------------------------------------------------------


def test_meta_models_are_the_models_without_their_weights(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    meta_models = assembly(run()).meta_models
    for name, meta_model in meta_models.items():
        path = str(tmp_path / name)
        model = load_language_model(path, load_tokenizer(path))
        for field in ("stop_ids", "padded_vocabulary_size", "context_length", "cache_bytes_per_slot", "known_ids"):
            assert getattr(meta_model, field) == getattr(model, field), field
        shapes = [(key, value.shape, value.dtype) for key, value in model.module.named_parameters()]
        assert [(key, value.shape, value.dtype) for key, value in meta_model.module.named_parameters()] == shapes
        assert meta_model.device.type == "meta"


def test_problems_that_were_trained_on(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "seen.jsonl").write_text("\n".join([*lines[:2], '{"problem": "1 + 1 + 1?", "answer": "3"}']) + "\n")
    finding = found(run("evaluation.sets=['seen.jsonl']", "data.verifier=exact"), "contamination")
    assert finding.verdict == Verdict.warning and "2 of 3 in 'seen'" in finding.text
    assert found(run("evaluation.sets=[]"), "contamination").verdict == Verdict.ok


def test_a_disk_that_is_too_small(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run("steps=10", "checkpoint.every=2", "checkpoint.keep_last=3", "evaluation.sets=[]")
    # Weights and two moments; three that stay and one that is being written.
    student = assembly(config).meta_models["student"].module
    needed = 4 * 3 * sum(parameter.numel() * parameter.element_size() for parameter in student.parameters())
    for free, verdict in ((needed - 1, Verdict.error), (needed + 1, Verdict.warning), (2 * needed, Verdict.ok)):
        monkeypatch.setattr(budget.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert found(config, "disk").verdict == verdict


def test_what_can_be_forecast_exactly_is(run: Callable[..., RunConfig]) -> None:
    parts = assembly(run())
    needed, models = budget.forecast(parts), parts.models
    student, teacher = (
        sum(p.numel() * p.element_size() for p in model.module.parameters())
        for model in (models.student, models.teacher)
    )
    update = needed["update"]
    assert (update["student"], update["teacher"]) == (student, teacher)
    optimizer = parts.config.optimizer.make(models.student.module)
    for parameter in models.student.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert update["moments"] == sum(value.numel() * value.element_size() for value in moments)
    assert update["gradients"] == sum(p.grad.nbytes for p in models.student.module.parameters())
    longest = max(len(prompt.student_tokens) for prompt in parts.prompts.prompts)
    slots = 6 * (longest + 10 + MAX_DRAFT_LENGTH)
    cache = models.student.cache_bytes_per_slot + models.teacher.cache_bytes_per_slot
    assert needed["rollout"]["caches"] == slots * cache
    assert budget.forecast(assembly(run("policy=student")))["rollout"]["caches"] < slots * cache


def test_the_forecast_knows_adapters_and_precision(run: Callable[..., RunConfig]) -> None:
    """An adapter's own gradients and moments, no second backbone for a reference, less to keep for backward."""
    plain, target = budget.forecast(assembly(run()))["update"], ["target.name=extrapolated"]
    parts = assembly(run("student.adapter.rank=4", "student.adapter.method=dora", *target))
    update, trainable = budget.forecast(parts)["update"], parts.models.student.trainable
    learned = sum(weight.nbytes for weight in trainable.parameters().values())
    assert (update["gradients"], update["moments"]) == (learned, 2 * learned)
    assert update["student"] == plain["student"] + learned and update["teacher"] == plain["teacher"]
    assert budget.forecast(assembly(run(*target)))["update"]["teacher"] == plain["teacher"] + plain["student"]
    narrow = ["student.dtype=bfloat16", *target, "reference.refresh_every=1", "reference.share=0.1"]  # kept in float32
    assert budget.forecast(assembly(run(*narrow)))["update"]["teacher"] == plain["teacher"] + plain["student"]

    checkpointed = budget.forecast(assembly(run("runtime.gradient_checkpointing=true")))["update"]
    assert checkpointed["activations"] < 0.7 * plain["activations"]
    autocast = budget.forecast(assembly(run("runtime.autocast=bfloat16")))
    assert plain["activations"] / 2 < autocast["update"]["activations"] < plain["activations"]
    for phase in autocast.values():  # all but the norms; they stay from one rollout to the next
        assert 0.9 * plain["student"] / 2 < phase["weights to decode from"] < plain["student"] / 2
    assert autocast["update"]["weights in bfloat16"] == plain["student"] / 2


def test_the_forecast_of_one_of_several_processes(run: Callable[..., RunConfig]) -> None:
    """3 prompts with 2 answers: the first of two processes has 2 prompts. What is cut into parts is, and no more."""
    alone, shared = budget.forecast(assembly(run())), budget.forecast(assembly(run()), 2)
    assert shared["rollout"]["caches"] * 6 == alone["rollout"]["caches"] * 4
    learned = alone["update"]["gradients"]
    whole = ("student", "teacher", "moments", "gradients")
    assert [shared["update"][name] for name in whole] == [alone["update"][name] for name in whole]

    cut = budget.forecast(assembly(run("runtime.strategy=fsdp2", "runtime.shard_teacher=true")), 2)["update"]
    assert (cut["gradients"], cut["moments"], cut["student"]) == (learned / 2, learned, 1.5 * learned)
    teacher = assembly(run()).models.teacher
    assert teacher is not None
    layers = sum(weight.nbytes for name, weight in teacher.module.named_parameters() if "embed" not in name)
    assert cut["teacher"] == alone["update"]["teacher"] - layers / 2
    finding = next(found for found in examine(run(), quick=True, processes=2) if found.check == "memory")
    assert finding.text.endswith("for each of 2 processes")


def test_reward_models_and_gradients_of_rewards_are_in_the_forecast(
    run: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_reward_model(tmp_path / "judge")
    judge = f'{{name="reward_model", path="{path}", label="helpful", dtype="bfloat16"}}'
    rated = budget.forecast(assembly(run(f"reward=[{judge}, 'length']")))
    plain = budget.forecast(assembly(run("reward=length")))
    assert set(plain) == {"rollout", "scoring", "update"} and set(rated) == {*plain, "rating"}
    weights = 2 * sum(weight.numel() for weight in load_file(path / "model.safetensors").values())
    for part in plain:
        assert rated[part] == {**plain[part], "reward models": weights}
    resident = sum(size for name, size in rated["scoring"].items() if name not in ("activations", "logits"))
    assert sum(rated["rating"].values()) == resident + rated["rating"]["reward batch"]
    small = budget.forecast(assembly(run(f"reward=[{judge.replace('}', ', max_batch_tokens=1}')}]")))["rating"]
    assert 0 < small["reward batch"] < rated["rating"]["reward batch"], "a text that is longer is read alone"

    loss = "loss=[{name='policy_gradient'}]"
    followed = run(f"reward=[{judge}, 'length', 'overlong']", "reward_combination=conflict_averse", loss)
    assert budget.forecast(assembly(followed))["update"]["gradients"] == 3 * plain["update"]["gradients"]

    monkeypatch.setattr(budget, "machine_bytes", lambda device: 1)
    large = save_reward_model(tmp_path / "large", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    finding = found(run(f'reward=[{{name="reward_model", path="{large}"}}]'), "memory")
    assert finding.text.endswith("most of it reward models") and finding.remedy.startswith(
        "Set reward.dtype = 'bfloat16'"
    )


def test_what_processes_cannot_share_is_a_line(run: Callable[..., RunConfig]) -> None:
    config = run("runtime.strategy=fsdp2", "student.adapter.rank=4")
    finding = next(iter(examine(config, quick=True, processes=2)))
    assert (finding.check, finding.verdict) == ("run file", Verdict.error)
    assert finding.text.startswith("runtime.strategy is 'fsdp2', which shares out all weights")
    assert next(iter(examine(config, quick=True))).verdict == Verdict.ok


def test_a_student_that_cannot_learn_so_is_a_line(run: Callable[..., RunConfig]) -> None:
    config = run("student.quantization=4bit", "student.adapter.rank=4", "runtime.device=cpu")
    (finding,) = [finding for finding in examine(config, quick=True) if finding.check == "run file"]
    assert finding.verdict == Verdict.error and "bitsandbytes" in finding.text


def test_a_machine_that_is_too_small(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    most = max(sum(parts.values()) for parts in budget.forecast(assembly(run())).values())
    for there, verdict in ((most - 1, Verdict.error), (most + 1, Verdict.warning), (2 * most, Verdict.ok)):
        monkeypatch.setattr(budget, "machine_bytes", lambda device, there=there: there)
        assert found(run(), "memory").verdict == verdict
    monkeypatch.setattr(budget, "machine_bytes", lambda device: 1)
    rest = [finding for finding in examine(run()) if finding.check in COSTLY]
    assert {finding.verdict for finding in rest} == {Verdict.skipped} and len(rest) == len(COSTLY)


def test_a_step_is_timed_and_leaves_no_trace(run: Callable[..., RunConfig]) -> None:
    parts = assembly(run())
    before = [parameter.clone() for parameter in parts.models.student.module.parameters()]
    finding = budget.time_per_step(parts)
    assert finding.verdict == Verdict.ok and "for 6 steps" in finding.text
    after = list(parts.models.student.module.parameters())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, after, strict=True))


# --- the models ------------------------------------------------------------------------------------------------------


def test_a_scoring_that_is_off_by_one(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(run(), "own teacher").verdict == Verdict.ok
    aligned = reading.response_hidden

    def shifted(model: Any, sequences: Any) -> torch.Tensor:
        return aligned(model, sequences).roll(1, 0)

    monkeypatch.setattr(reading, "response_hidden", shifted)
    finding = found(run(), "own teacher")
    assert finding.verdict == Verdict.error and "both should be 0" in finding.text


def test_a_loss_that_reads_off_by_one_as_the_scoring_does(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two then agree with each other, and not with what was sampled."""
    aligned = reading.response_hidden
    for module in ("tutelage.rollout.reading", "tutelage.training.objective"):
        monkeypatch.setattr(f"{module}.response_hidden", lambda model, read: aligned(model, read).roll(1, 0))
    assert found(run(), "own teacher").verdict == Verdict.error


def test_the_longest_text_of_the_run_is_read_both_ways(
    run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a cache goes wrong in long texts only, as where a window or other rotary factors begin."""
    config, lengths = run(), []

    def spoiled(model: Any, tokens: Any, num_last: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths.append(len(tokens))
        cached, whole = both_readings(model, tokens, num_last)
        return cached.roll(1, -1), whole

    longest = max(len(prompt.student_tokens) for prompt in assembly(config).prompts.prompts)
    expected = longest + config.rollout.max_new_tokens
    assert f"at {expected} tokens" in found(config, "own teacher").text
    monkeypatch.setattr("tutelage.preflight.trial.both_readings", spoiled)
    finding = found(config, "own teacher")
    assert finding.verdict == Verdict.error and lengths == [expected]
    assert f"but at the run's longest text, {expected} tokens" in finding.text


def test_a_model_that_fails_is_a_line(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory\nmore lines")

    monkeypatch.setattr("tutelage.config.assembly.load_student", full)
    findings = [finding for finding in examine(run()) if finding.check in COSTLY]
    assert [finding.text for finding in findings] == ["stopped by RuntimeError: out of memory"] * 4


def test_models_that_have_little_in_common(run: Callable[..., RunConfig]) -> None:
    finding = found(run(), "overlap")
    assert finding.verdict == Verdict.warning and "low overlap at the start predicts failure" in finding.text


def test_a_teacher_that_cannot_solve_the_problems(run: Callable[..., RunConfig]) -> None:
    finding = found(run(), "pass@1")  # random weights
    assert finding.verdict == Verdict.error and "teacher 0% (95% 0 to 0)" in finding.text


@pytest.mark.runs
def test_a_teacher_that_is_weaker_than_the_student(packaged: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "NUM_SAMPLES", 1)
    swapped = {"student": packaged.student.model_copy(update={"path": packaged.teacher.path})}
    swapped["teacher"] = packaged.teacher.model_copy(update={"path": packaged.student.path})  # type: ignore[assignment]
    finding = found(packaged.model_copy(update=swapped), "pass@1")
    assert finding.verdict == Verdict.warning and "the teacher is no better than the student" in finding.text


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[CliRunner]:
    yield CliRunner(env={"COLUMNS": "100"})


def test_exit_codes(run: Callable[..., RunConfig], tmp_path: Path, quiet: CliRunner) -> None:
    outcome = quiet.invoke(app, ["doctor", str(tmp_path / "run.toml"), "--quick"])
    assert outcome.exit_code == 0 and outcome.output.endswith(f"{len(CHEAP)} ok\n")
    broken = ["--set", "data.answer_column=problem"]
    outcome = quiet.invoke(app, ["doctor", str(tmp_path / "run.toml"), "--quick", *broken])
    assert outcome.exit_code == 1 and "error   verifier: data.answer_column 'problem'" in outcome.output
    assert "-> Set data.answer_column" in outcome.output and "1 error" in outcome.output


@pytest.mark.runs
def test_train_mentions_what_the_cheap_checks_find(
    run: Callable[..., RunConfig], tmp_path: Path, quiet: CliRunner
) -> None:
    save(tmp_path, "teacher", tokenizer=make_tokenizer(eos="<|im_end|>"), stop_ids=IM_END)
    few = ["--set", "steps=1", "--set", "evaluation.sets=[]", "--set", "rollout.max_new_tokens=4"]
    outcome = quiet.invoke(app, ["train", str(tmp_path / "run.toml"), *few])
    assert outcome.exit_code == 0
    assert outcome.output.startswith("warning: stop ids: the stop ids have nothing in common")
    assert outcome.output.count("warning") == 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_findings_fit_into_any_width(width: int) -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    print_finding(console, Finding(Verdict.warning, "text [and brackets] " * 9, "Do [this].", ("x" * 300,), "a check"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("warning a check: text") and max(map(len, lines)) <= width
    assert "-> Do [this]." in "\n".join(lines) and "[and" in "\n".join(lines)


# --- rewards ---------------------------------------------------------------------------------------------------------


GROUPED = ['loss=[{name="clipped_surrogate"}]', "policy=student"]


def of_rewards(config: RunConfig) -> Finding:
    return rating.spread(assembly(config))


def test_answers_that_are_all_worth_the_same(run: Callable[..., RunConfig]) -> None:
    """A random model solves nothing, so the verdict teaches nothing; its answers differ in length."""
    finding = of_rewards(run("reward=correct", *GROUPED))
    assert finding.verdict == Verdict.warning and "of 12 prompts all answers are worth the same" in finding.text
    assert "nothing can be learned from these" in finding.text and finding.remedy.startswith("Use easier prompts")
    assert finding.details == ("correct: mean 0, deviation 0",)
    finding = of_rewards(run('reward=[{name="format", pattern="never"}]', "data.verifier=", *GROUPED))
    assert finding.verdict == Verdict.warning and finding.remedy.startswith("Use a reward that tells")
    only_written = of_rewards(run("reward=correct"))
    assert only_written.verdict == Verdict.ok and "No loss learns from rewards" in only_written.text


def test_answers_that_differ(run: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    (Path.cwd() / "differing.py").write_text("def f(prompt, response, answer):\n    return float(len(response) % 7)\n")
    config = run('reward=[{name="function", function="differing:f"}]', *GROUPED)
    finding = of_rewards(config)
    assert finding.verdict == Verdict.ok and finding.text.startswith("12 prompts, 2 answers each: reward mean ")
    monkeypatch.setattr(rating, "HARDLY", -1.0)
    assert "little can be learned from these" in of_rewards(config).text


def test_a_run_without_a_teacher_has_no_lines_about_one(tmp_path: Path, run: Callable[..., RunConfig]) -> None:
    table = run("reward=correct", *GROUPED).model_dump(exclude_unset=True)
    del table["teacher"]
    config = resolve_config(table)
    findings = list(examine(config))
    names = [finding.check for finding in findings]
    assert names == [*TEXTS, *RATED, *BUDGET, "own teacher", "time", *RATED_COSTLY]
    assert {finding.verdict for finding in findings} <= {Verdict.ok, Verdict.warning}
    others = [found for found in findings if found.check not in ("own teacher", "run file")]  # its path has the name
    lines = [line for found in others for line in (found.text, *found.details)]
    assert [line for line in lines if "teacher" in line or "both" in line] == []


def test_what_a_reward_model_reads(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    path = save_reward_model(tmp_path / "judge")
    config = run(f'reward=["correct", {{name="reward_model", path="{path}", label="helpful"}}]')
    finding = rating.rewards(assembly(config))
    assert finding.verdict == Verdict.ok
    assert finding.text == (
        "correct (weight 1.0), helpful (weight 1.0); tokenizer, template and weights of helpful fit together"
    )
    (read,) = finding.details
    assert "What is 0 + 0?" in read and "This is the answer." in read
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{- messages[0]['content'] -}}"
    save_reward_model(tmp_path / "deaf", tokenizer=tokenizer)
    deaf = rating.rewards(assembly(run(f'reward=[{{name="reward_model", path="{tmp_path / "deaf"}"}}]')))
    assert deaf.verdict == Verdict.error and "leaves the answer out" in deaf.text
    save_reward_model(tmp_path / "many", num_labels=2)
    config = run(f'reward=[{{name="reward_model", path="{tmp_path / "many"}"}}]')
    (refused,) = [finding for finding in examine(config, quick=True) if finding.check == "rewards"]
    assert refused.verdict == Verdict.error and "has 2 outputs; expected one" in refused.text
