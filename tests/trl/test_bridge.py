"""A policy inside TRL's own loop: its answers, and TRL's losses and gradients on them beside ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.objectives import objective_of
from tutelage.demo import make_problems, student_path, teacher_path
from tutelage.errors import ConfigurationError
from tutelage.integrations.trl import PolicyRollout
from tutelage.losses import DistributionLoss, Loss
from tutelage.losses.distributions import ForwardKL, JensenShannon, ReverseKL
from tutelage.losses.tokens import ClippedSurrogate
from tutelage.models import ModelSet, load_language_model, load_tokenizer
from tutelage.policies import Policy, Student, Teacher, Temperature, TrustRegion
from tutelage.rollout import PairedEngine
from tutelage.schedules import Linear
from tutelage.types import Batch, Prompt, Rollout

NUM_PROMPTS, MAX_NEW_TOKENS, LEARNING_RATE = 8, 24, 1e-3
TRB = TrustRegion(kl_radius=0.02)
# Relative: of a loss, and of the norm of a whole gradient. Both sides compute in float32 and add up in another order.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 5e-5


def test_the_answers_are_those_of_our_engine(tmp_path: Path) -> None:
    """Same policy, seed and step: TRL's trainer gets the very tokens that the paired engine makes by itself."""
    seen = trained(tmp_path, TRB).rollouts
    engine = PairedEngine(*our_models())
    prompts = [Prompt(each.prompt_tokens, stream=place) for place, each in enumerate(seen[0])]
    own = engine.generate(TRB, prompts, max_new_tokens=MAX_NEW_TOKENS, seed=7)
    assert [each.response_tokens for each in own] == [each.response_tokens for each in seen[0]]
    assert any(each.finished for each in own)
    assert tokens(seen[0]) != tokens(seen[1])


def test_the_teacher_takes_part_where_the_policy_is_on(tmp_path: Path) -> None:
    """TRB on and off in the same loop; a schedule that ends makes the rollouts the student's own."""
    on, off = trained(tmp_path / "on", TRB), trained(tmp_path / "off", Student())
    warm_up = trained(tmp_path / "warm-up", TrustRegion(kl_radius=Linear(0.02, 0.0, 1)))
    assert max(float(each.blend.max()) for each in on.rollouts[0] if each.blend is not None) > 0.05
    assert all(each.blend is None for each in [*off.rollouts[0], *warm_up.rollouts[1]])
    assert tokens(warm_up.rollouts[0]) == tokens(on.rollouts[0])
    assert tokens(on.rollouts[0]) != tokens(off.rollouts[0])
    assert 0 < on.logged[0]["policy/blend"] < 1 and 0 < on.logged[0]["policy/kl_to_student"] < 0.021
    assert "policy/blend" not in off.logged[0]


@pytest.mark.parametrize("policy", [TRB, Student()], ids=["trb", "plain"])
@pytest.mark.parametrize(
    ("beta", "loss"),
    [
        (1.0, ReverseKL(support="full")),
        (0.0, ForwardKL(support="full")),
        (0.3, JensenShannon(target_share=0.3, support="full")),
    ],
    ids=["reverse", "forward", "jsd"],
)
def test_losses_are_ours_on_the_same_tokens(
    tmp_path: Path, policy: Policy, beta: float, loss: DistributionLoss
) -> None:
    """TRL's loss and its gradient are those of our objective: full vocabulary, mean over all tokens of the batch.

    TRL learns the batch in two pieces and ours in one, so the normaliser is the batch's on both sides.
    """
    seen = trained(tmp_path, policy, steps=1, beta=beta)
    value, gradient = ours(seen.rollouts[0], loss)
    assert seen.losses[0] == pytest.approx(value, rel=LOSS_TOLERANCE)
    assert seen.logged[0]["loss"] == pytest.approx(value, rel=1e-3)  # TRL rounds what it logs
    assert distance(seen.gradients[0], gradient) < GRADIENT_TOLERANCE


def test_the_bridge_leaves_the_loop_as_it_is(tmp_path: Path) -> None:
    """On given answers nothing of a step depends on who made them: two updates with ours are two updates of TRL's."""
    seen = trained(tmp_path / "bridge", TRB)
    again = trained(tmp_path / "given", None, answers=[tokens(each) for each in seen.rollouts])
    assert again.losses == seen.losses
    for one, other in zip(seen.gradients, again.gradients, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_and_checkpointed_gradients(tmp_path: Path) -> None:
    """The student is what TRL trains, its adapter included; step 1 samples from what step 0 has learned."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.3)
    seen = trained(tmp_path, TRB, peft_config=adapter, gradient_checkpointing=True)
    assert seen.trainer.model.training and seen.trainer.model.is_gradient_checkpointing
    assert mismatch(seen).max() < 1e-4


def test_answers_are_made_in_the_precision_of_the_loss(tmp_path: Path) -> None:
    """bfloat16 is TRL's default: GRPO's loss is cast, and that of distillation computes beside the cast forward."""
    plain, cast = (trained(tmp_path / str(bf16), TRB, steps=1, bf16=bf16) for bf16 in (False, True))
    assert cast.trainer.accelerator.mixed_precision == "bf16" and cast.losses == plain.losses
    for one, other in zip(cast.rollouts[0], plain.rollouts[0], strict=True):
        assert torch.equal(one.student_logprobs, other.student_logprobs)

    grpo = {"reward_funcs": lambda completion_ids, **_: [1.0] * len(completion_ids), "num_generations": 4}
    seen = trained(tmp_path / "grpo", Student(), steps=1, bf16=True, grpo=grpo)
    assert 1e-6 < mismatch(seen).mean() < 0.02  # products of bfloat16 depend on their shapes


def mismatch(seen: Seen) -> torch.Tensor:
    """|log p of the last answers' tokens in TRL's model - in the rollout|, at the weights that drew them."""
    model, found = seen.trainer.model.eval(), []
    with torch.no_grad():
        for name, weight in model.named_parameters():  # they have moved once more since
            if name in seen.before[-1]:
                weight.copy_(seen.before[-1][name])
        for each in seen.rollouts[-1]:
            ids = torch.tensor([[*each.prompt_tokens, *each.response_tokens]])
            with seen.trainer.accelerator.autocast():
                logits = model(ids).logits[0, len(each.prompt_tokens) - 1 : -1]
            tokens_T1 = torch.tensor(each.response_tokens)[:, None]
            plain = logits.float().log_softmax(-1).gather(-1, tokens_T1)[:, 0]
            found.append((each.student_logprobs.float() - plain).abs())
    return torch.cat(found)


def test_grpo_learns_from_answers_of_a_policy(tmp_path: Path) -> None:
    """TRL's GRPO takes the rollout as its `rollout_func`; each answer of a group is another draw."""
    rewards: list[float] = []

    def length(completion_ids: list[list[int]], **others: Any) -> list[float]:
        rewards.extend(len(ids) / MAX_NEW_TOKENS for ids in completion_ids)
        return rewards[-len(completion_ids) :]

    teacher = plain_model(teacher_path())
    seen = trained(tmp_path, TRB, grpo={"reward_funcs": length, "num_generations": 4}, teacher=teacher)
    first = seen.rollouts[0]
    assert len(first) == NUM_PROMPTS and len(set(map(tuple, tokens(first)[:4]))) > 1
    assert [each.prompt_tokens for each in first[:4]] == [first[0].prompt_tokens] * 4
    assert rewards[:NUM_PROMPTS] == [len(each) / MAX_NEW_TOKENS for each in first]
    assert 0 < seen.logged[0]["policy/blend"] < 1
    assert all(bool(each.isfinite().all()) for each in seen.gradients[0].values())


@pytest.mark.parametrize("policy", [TRB, Student()], ids=["trb", "plain"])
def test_grpos_gradient_is_ours_without_a_correction(tmp_path: Path, policy: Policy) -> None:
    """GRPO in TRL's defaults: a mean over all tokens, deviations from the group's mean over its standard deviation."""

    def length(completion_ids: list[list[int]], **others: Any) -> list[float]:
        return [len(ids) / MAX_NEW_TOKENS for ids in completion_ids]

    grpo = {"reward_funcs": length, "num_generations": 4}
    seen = trained(tmp_path, policy, steps=1, grpo=grpo, teacher=plain_model(teacher_path()))
    groups = [replace(each, prompt_index=place // 4) for place, each in enumerate(seen.rollouts[0])]
    rewards = {"reward": torch.tensor([len(each) / MAX_NEW_TOKENS for each in groups])}
    value, gradient = ours(groups, ClippedSurrogate(correction="none"), rewards)
    assert seen.losses[0] == pytest.approx(value, abs=1e-6)
    assert distance(seen.gradients[0], gradient) < GRADIENT_TOLERANCE


ONE_OF_TWO = """
import json, os, sys
from pathlib import Path
from tests.trl import test_bridge as bridge
prompts, rank = bridge.prompts, int(os.environ["RANK"])
bridge.prompts = lambda count: prompts(2 * count)  # each process has its own
seen = bridge.trained(Path(sys.argv[1]) / str(rank), bridge.TRB, steps=1, ddp_backend="gloo")
norm = sum(float(each.double().square().sum()) for each in seen.gradients[0].values())
answers = [(each.prompt_tokens, each.response_tokens) for each in seen.rollouts[0]]
(Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps({"answers": answers, "norm": norm}))
"""


def test_processes_draw_for_their_own_prompts(tmp_path: Path) -> None:
    """Two of them under DDP: other prompts, other random streams, one gradient."""
    (tmp_path / "one_of_two.py").write_text(ONE_OF_TWO)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "src"), *sys.path])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(tmp_path / "one_of_two.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["norm"] == found[1]["norm"]
    engine = PairedEngine(*our_models())
    for rank, each in enumerate(found):
        own = [Prompt(prompt, stream=2 * place + rank) for place, (prompt, _) in enumerate(each["answers"])]
        drawn = engine.generate(TRB, own, max_new_tokens=MAX_NEW_TOKENS, seed=7)
        assert tokens(drawn) == [answer for _, answer in each["answers"]]
    assert not {tuple(prompt) for prompt, _ in found[0]["answers"]} & {
        tuple(prompt) for prompt, _ in found[1]["answers"]
    }


def test_evaluations_measure_the_student(tmp_path: Path) -> None:
    rollout = PolicyRollout(Teacher(), seed=7)
    trainer = make_trainer(tmp_path, eval_dataset=prompts(4), per_device_eval_batch_size=2)
    rollout.attach(trainer)
    trainer.evaluate()
    assert all(each.blend is None and each.teacher is None for each in rollout.last)
    engine = PairedEngine(our_models()[0])
    own = engine.generate(
        Student(),
        [Prompt(each.prompt_tokens, stream=2 + place) for place, each in enumerate(rollout.last)],
        max_new_tokens=MAX_NEW_TOKENS,
        seed=7,
    )
    assert tokens(own) == tokens(rollout.last)


def test_the_script_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/usage/trl.md").read_text()
    (script,) = [each for each in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "STEPS" in each]
    small = script.replace("STEPS, PROMPTS = 10, 64", "STEPS, PROMPTS = 1, 4").replace("_length=90", "_length=8")
    assert small.count("= 1, 4") == 1
    exec(compile(small, "trl.md", "exec"), {"__name__": "page"})
    lines = [line for line in capsys.readouterr().out.splitlines() if "seconds a step" in line]
    assert [line.split("  ")[0] for line in lines] == ["TRL's own rollout", "student", "TRB, 0.05 to 0", "TRB, 0.05"]
    assert ["blend 0.00" in line for line in lines] == [True, True, False, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.7}, "args.temperature of the trainer is 0.7"),
        ({"top_p": 0.9}, "args.top_p of the trainer is 0.9"),
        ({"top_k": 20}, "args.top_k of the trainer is 20"),
        ({"generation_kwargs": {"num_beams": 2}}, "args.generation_kwargs of the trainer is"),
    ],
)
def test_what_would_change_the_sampling_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PolicyRollout(TRB).attach(make_trainer(tmp_path, **settings))


def test_other_trainers_and_second_ones_are_refused(tmp_path: Path) -> None:
    grpo = make_trainer(tmp_path, grpo={"reward_funcs": lambda completion_ids, **_: [0.0], "num_generations": 4})
    with pytest.raises(ConfigurationError, match="attach got GRPOTrainer; expected TRL's DistillationTrainer"):
        PolicyRollout(TRB).attach(grpo)
    with pytest.raises(ConfigurationError, match="asks the teacher at every token, but this engine has only a student"):
        PolicyRollout(TRB)([[{"role": "user", "content": "1 + 1?"}]], grpo)
    rollout = PolicyRollout(Temperature(0.5))
    rollout.attach(make_trainer(tmp_path))
    with pytest.raises(ConfigurationError, match="belongs to another trainer already"):
        rollout.attach(make_trainer(tmp_path))


@dataclass
class Seen:
    """What a training did, step by step."""

    trainer: Any
    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    rollouts: list[list[Rollout]] = field(default_factory=list)
    before: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def logged(self) -> list[dict[str, float]]:
        return [line for line in self.trainer.state.log_history if "loss" in line]


def trained(
    folder: Path,
    policy: Policy | None,
    *,
    steps: int = 2,
    teacher: Any = None,
    answers: list[list[list[int]]] | None = None,
    **settings: Any,
) -> Seen:
    """Steps of TRL's loop with a policy's answers, or with given ones."""
    from transformers import TrainerCallback

    rollout = None if policy is None else PolicyRollout(policy, teacher=teacher, seed=7)
    is_grpo = "grpo" in settings
    trainer = make_trainer(folder, steps=steps, rollout=rollout if is_grpo else None, **settings)
    if rollout is not None and not is_grpo:
        rollout.attach(trainer)
    if answers is not None:
        given = iter(answers)
        trainer._generate_single_turn = lambda *_, **__: next(given)
    seen, compute_loss = Seen(trainer), trainer.compute_loss

    def watched(*arguments: Any, **others: Any) -> Any:
        value = compute_loss(*arguments, **others)
        seen.losses[-1] += float(value.detach())
        return value

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            learns = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            seen.before.append({name: weight.detach().clone() for name, weight in learns.items()})
            seen.losses.append(0.0)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            learns = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            seen.gradients.append({name: gradient.clone() for name, gradient in learns.items()})
            if rollout is not None:
                seen.rollouts.append(rollout.last)

    trainer.compute_loss = watched
    trainer.add_callback(Watch())
    trainer.train()
    return seen


def make_trainer(
    folder: Path, *, steps: int = 1, grpo: dict[str, Any] | None = None, rollout: Any = None, **settings: Any
) -> Any:
    """A DistillationTrainer, or a GRPOTrainer, on the packaged pair; the batch in two pieces."""
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    of_trainer = {name: settings.pop(name) for name in ("peft_config", "eval_dataset") if name in settings}
    common = {
        "output_dir": str(folder),
        "per_device_train_batch_size": NUM_PROMPTS // 2,
        "gradient_accumulation_steps": 2,
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": 0.0,
        "max_completion_length": MAX_NEW_TOKENS,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    of_trainer |= {
        "model": plain_model(student_path()),
        "train_dataset": prompts(NUM_PROMPTS * steps),
        "processing_class": transformers_tokenizer(),
    }
    if grpo is None:
        teacher = plain_model(teacher_path())
        return DistillationTrainer(teacher_model=teacher, args=DistillationConfig(**common), **of_trainer)
    of_trainer |= {"reward_funcs": grpo["reward_funcs"], "rollout_func": rollout}
    return GRPOTrainer(args=GRPOConfig(num_generations=grpo["num_generations"], **common), **of_trainer)


def prompts(count: int) -> Any:
    from datasets import Dataset

    texts = [problem.problem for problem in make_problems(count, seed=81_000)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts])


def plain_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def transformers_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(student_path(), padding_side="left")


def our_models() -> tuple[Any, Any]:
    tokenizer = load_tokenizer(str(student_path()))
    return tuple(load_language_model(str(path), tokenizer) for path in (student_path(), teacher_path()))  # type: ignore[return-value]


def ours(
    rollouts: list[Rollout], loss: Loss, rewards: dict[str, torch.Tensor] | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Our loss on answers, and its gradient, at the student as it was before the first step."""
    student, teacher = our_models()
    student.enable_grad()
    found = objective_of(ModelSet.of(student, teacher), loss).backward(Batch(rollouts, rewards or {}))
    gradient = {name: w.grad for name, w in student.module.named_parameters() if w.grad is not None}
    return found.loss, gradient


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """|one - other| / |other|."""
    assert one.keys() == other.keys()
    squares = [float((one[name] - other[name]).double().square().sum()) for name in other]
    return float((sum(squares) / sum(float(g.double().square().sum()) for g in other.values())) ** 0.5)


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.response_tokens for rollout in rollouts]
