from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.errors import ConfigurationError
from tutelage.tasks import Verifier, VerifierWarning, check_verifier, verifiers, verify
from tutelage.tasks.equality import compare_plainly, for_algebra
from tutelage.tasks.verifier_process import INSIDE_WORKER, WorkerProcess

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
SOURCE = Path(verifiers.__file__).parents[2]


@pytest.fixture(scope="module")
def math() -> Iterator[Verifier]:
    with Verifier("math") as verifier:
        yield verifier


@pytest.fixture(scope="module")
def algebra() -> Iterator[WorkerProcess]:
    """What judges where a plain comparison does not decide."""
    worker = WorkerProcess("math", timeout_seconds=5.0, memory_limit_gib=4.0)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def impatient_math() -> Iterator[Verifier]:
    with Verifier("math", timeout_seconds=0.5) as verifier:
        yield verifier


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module in the current directory; its worker starts much faster than that of mathematics."""
    (tmp_path / "rewards.py").write_text(
        textwrap.dedent(
            """
            import ctypes, math, os, sys, time

            class Family:
                @staticmethod
                def check(response, answer):
                    return response == answer

            not_a_function = 3

            def contains(response, answer):
                print("this must not reach the protocol"); os.write(1, b"nor this\\n")
                assert sys.stdin.read() == ""
                return answer in response

            def telling(response, answer):
                if response == "pid": open(answer, "w").write(str(os.getpid()))
                if response == "sleep": open(answer, "w"); time.sleep(60)
                return response == "pid" or answer in response

            def score(response, answer):
                return {"nan": math.nan, "none": None, "text": "1", "exit": None}.get(response) if response.isalpha() \\
                    else float(response)

            def fragile(response, answer):
                if response == "raise": raise ValueError("half an emoji: \\ud83d")
                if response == "exit": sys.exit(3)
                if response == "die": os._exit(3)
                if response == "sleep": time.sleep(60)
                if response == "hungry": return len(bytearray(2**40)) > 0
                return True

            def forking(response, answer):
                child = os.fork()
                if child == 0:
                    if response == "leaves": os.setsid(); time.sleep(60)
                    return True  # goes on as the worker would
                if response == "waits": os.waitpid(child, 0)
                if response == "leaves": open(answer, "w").write(str(child)); os._exit(3)
                return response == answer

            def hanging(response, answer):
                if response == "fine": return True
                child = os.fork() if response == "fork" else ctypes.CDLL(None).fork()
                if child == 0: os.setsid()
                else: open(answer, "w").write(str(child))
                time.sleep(60)

            def meddling(response, answer):
                pipes = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2
                         and os.path.exists(f"/proc/self/fd/{fd}") and "pipe" in os.readlink(f"/proc/self/fd/{fd}")]
                if response == "answers":
                    for fd in pipes[1:]: os.write(fd, b'{"number": 1000000, "correct": true, "error": null}\\n')
                if response == "babbles":
                    for fd in pipes[1:]: os.write(fd, b"no message\\n")
                if response == "closes": os.closerange(3, 100)
                return response == answer
            """
        )
    )
    monkeypatch.chdir(tmp_path)


RIGHT = [
    ("The answer is 18.", "18"),
    (r"\boxed{142}", "142.0"),
    (r"\boxed{-7}", "-7"),
    (r"\boxed{70{,}000}", "70000"),
    (r"\boxed{\$2,125.00}", "2,125"),
    (r"\boxed{18 \text{ dollars}}", "18"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{5}", "x=5"),
    (r"\boxed{\frac{14}{3}}", r"\frac{14}{3}"),
    (r"\boxed{14/3}", r"\frac{14}{3}"),
    (r"\boxed{4\frac{2}{3}}", r"\frac{14}{3}"),
    (r"\boxed{0.333333}", r"\frac13"),
    (r"\boxed{\left(3, \pi/2\right)}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{-q+p}", "p - q"),
    (r"\boxed{Evelyn}", r"\text{Evelyn}"),
    (r"\boxed{(3, 4]}", "(3,4]"),
    (r"\boxed{-2, 1}", "1,-2"),
    (r"\boxed{84, 69}", "$69$,$84$"),
    (r"\boxed{1+\sqrt{19}, 1-\sqrt{19}}", r"1 \pm \sqrt{19}"),
    (r"\boxed{\sqrt{242}}", r"11\sqrt2"),
    (r"\boxed{90}", r"90^\circ"),
    (r"\boxed{[-2,7]}", r"x \in [-2,7]"),
    (r"\boxed{\frac{\cos x}{\sin x}}", r"\cot x"),
    (r"\boxed{(-\infty, 0) \cup \{1\}}", r"$(-\infty, 0) \cup\{1\}$."),
    (
        r"\boxed{\begin{bmatrix} -1/3 \\ 2/3 \\ 5/3 \end{bmatrix}}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
    ),
    (r"first \boxed{3}, but then \boxed{4}", "4"),
    (r"\boxed{\boxed{\frac{2}{4}}}", r"\frac12"),
]
WRONG = [
    ("The answer is 17.", "18"),
    (r"\boxed{7}", "-7"),
    (r"\boxed{[3,4]}", "(3,4]"),
    (r"\boxed{(4,2)}", "$(2,4)$"),
    (r"\boxed{q - p}", "p - q"),
    (r"\boxed{Briana}", r"\text{Evelyn}"),
    (r"\boxed{69}", "$69$,$84$"),
    (r"\boxed{\frac{3}{14}}", r"\frac{14}{3}"),
    (r"\boxed{0}", r"$(-\infty, 0) \cup\{1\}$."),
    (r"first \boxed{4}, but then \boxed{3}", "4"),
    (r"cut off: \boxed{4", "4"),
    ("", "4"),
    ("", ""),
    (r"\boxed{}", ""),
    ("\N{GRINNING FACE}", "4"),
    (r"\boxed{" + "\N{GRINNING FACE}" + "}", "x"),
    ("\x00\x00", "x"),
    ("\\boxed{\x00}", "x"),
    ("\\boxed{\ud83d}", "x"),
    ("\\boxed{x}", "\ud83d"),
]


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_right_answers(math: Verifier, response: str, answer: str) -> None:
    assert math.verify(response, answer) is True


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_wrong_answers(math: Verifier, response: str, answer: str) -> None:
    assert math.verify(response, answer) is False


def test_what_counts_of_an_answer_that_was_cut() -> None:
    sixteen = [
        r"so \boxed{16}, since",
        "<answer>16</answer>",
        "16",
        r"\boxed{16} or \boxed{1",
        "so\n#### 16",
        "#### 16\nso",
    ]
    verdicts = {
        truncated: [Verifier(truncated=truncated).verify(text, "16", finished=False) for text in sixteen]
        for truncated in ("whole", "wrong", "as_text")
    }
    assert verdicts["whole"] == [True, True, False, False, False, True]
    assert verdicts["wrong"] == [False] * 6
    assert verdicts["as_text"] == [Verifier().verify(text, "16") for text in sixteen] == [True] * 6
    exact = Verifier("exact")
    assert [exact.verify(text, "16", finished=False) for text in sixteen[:3]] == [True, False, False]


def test_many_keep_their_order(math: Verifier) -> None:
    assert math.verify_many([*RIGHT[:3], *WRONG[:2], RIGHT[8]]) == [True, True, True, False, False, True]


@pytest.mark.sweeps
def test_what_is_decided_plainly_is_what_algebra_decides(algebra: WorkerProcess) -> None:
    generator = random.Random(0)
    whole = lambda most: generator.randrange(-most, most)  # noqa: E731
    forms = [
        lambda: f"{whole(20)}",
        lambda: f"{whole(10**6):,}",
        lambda: f"{whole(4000) / 100}",
        lambda: f"{whole(20)}/{1 + abs(whole(8))}",
        lambda: f"\\frac{{{whole(20)}}}{{{1 + abs(whole(8))}}}",
    ]
    decided = 0
    for _ in range(150):
        candidate, reference = generator.choice(forms)(), generator.choice(forms)()
        if generator.random() < 0.3:
            reference = candidate + ".0" if candidate.lstrip("-").isdigit() else candidate
        plain = compare_plainly(candidate, reference)
        if plain is not None:
            decided += 1
            assert algebra.ask(*for_algebra(candidate, reference)).value is plain, (candidate, reference)
    assert decided > 50


HANGS = ["9^{9^{9^{9}}}", "(10^{10})!"]
STRANGE = [
    "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 900 + "x" + ")" * 900,
    r"\frac{1}{" * 150 + "x" + "}" * 150,
    r"\sum_{n=1}^{10^{10}} n",
    r"\text{" * 200 + "}" * 200,
    "__import__('os').system('exit 1')",
    "1" * 1_999,
    r"\input{/etc/passwd}",
]


@pytest.mark.processes
@pytest.mark.parametrize("content", HANGS + STRANGE, ids=lambda content: content[:20])
def test_hostile_answers_are_wrong_in_bounded_time(impatient_math: Verifier, content: str) -> None:
    started = time.monotonic()
    assert impatient_math.verify(r"\boxed{" + content + "}", "y + 3") is False
    assert time.monotonic() - started < 10.5


@pytest.mark.processes
def test_timeouts_are_counted_and_the_next_answer_is_served() -> None:
    with Verifier("math", timeout_seconds=2.0) as verifier:
        assert not verifier.verify(r"\boxed{(10^{10})!}", "y + 3")
        assert verifier.num_timeouts == 1
        assert verifier.verify(r"\boxed{3 + y}", "y + 3")
        assert verifier.num_timeouts == 1


def test_long_responses_are_read_from_their_end(math: Verifier) -> None:
    started = time.monotonic()
    assert math.verify("Let me think. " * 75_000 + r"So \boxed{3 + y}.", "y + 3")
    assert not math.verify(r"\boxed{3 + y}" + "Let me think. " * 75_000, "y + 3")
    assert not math.verify("y" * 1_000_000, "z" * 1_000_000)
    assert not math.verify(r"\boxed{y}", "z+" * 500_000)
    assert time.monotonic() - started < 10


@pytest.mark.sweeps
@given(st.text(st.characters()), st.text(st.characters()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_a_verdict(math: Verifier, content: str, answer: str) -> None:
    assert isinstance(math.verify(content, answer), bool)
    assert isinstance(math.verify(r"\boxed{" + content + "}", answer), bool)


def pid_of_worker(verifier: Verifier) -> int:
    """What `rewards:telling` tells; the worker is started if need be."""
    assert verifier.verify("pid", "worker")
    return int(Path("worker").read_text())


@pytest.mark.processes
def test_a_worker_killed_from_outside_is_replaced(rewards: None) -> None:
    with Verifier("rewards:telling") as verifier:
        first = pid_of_worker(verifier)
        os.kill(first, signal.SIGKILL)
        assert pid_of_worker(verifier) != first


@pytest.mark.processes
def test_a_worker_killed_at_work_gets_its_answer_judged_by_another(rewards: None) -> None:
    with Verifier("rewards:telling") as verifier:
        first = pid_of_worker(verifier)
        os.kill(first, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
        killer.start()
        assert verifier.verify("same", "same")
        killer.join()
        assert verifier.num_timeouts == 0


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore::tutelage.tasks.VerifierWarning")
def test_a_worker_that_neither_reads_nor_writes_is_a_hung_one(rewards: None) -> None:
    with Verifier("rewards:telling", timeout_seconds=1.0) as verifier:
        for response in ("same", "same" * 250_000):  # the longer one does not fit into a pipe that is not read
            os.kill(pid_of_worker(verifier), signal.SIGSTOP)
            assert not verifier.verify(response, "same")
        assert verifier.num_timeouts == 2


@pytest.mark.processes
def test_close_ends_the_worker_and_a_later_call_starts_one(rewards: None) -> None:
    verifier = Verifier("rewards:telling")
    verifier.close()
    worker = pid_of_worker(verifier)
    verifier.close()
    verifier.close()
    assert not is_running(worker)
    again = pid_of_worker(verifier)
    del verifier  # no warning about an open pipe or a process left running
    assert not is_running(again)


def test_threads_take_turns(math: Verifier) -> None:
    verdicts: dict[int, bool] = {}

    def work(number: int) -> None:
        verdicts[number] = math.verify(rf"\boxed{{x + {number % 2}}}", "1 + x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: number % 2 == 1 for number in range(8)}


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.processes
@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_worker_alone(rewards: None) -> None:
    with Verifier("rewards:telling") as verifier:
        worker = pid_of_worker(verifier)
        child = os.fork()
        if child == 0:
            has_its_own = pid_of_worker(verifier) != worker
            verifier.close()
            os._exit(0 if has_its_own else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert pid_of_worker(verifier) == worker


@pytest.mark.processes
@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_idle", [True, False])
def test_the_worker_ends_when_its_parent_is_killed(rewards: None, is_idle: bool) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        verifier = Verifier("rewards:telling", timeout_seconds=1.0)
        worker = pid_of_worker(verifier)
        if not is_idle:
            threading.Thread(target=verifier.verify, args=("sleep", "asleep"), daemon=True).start()
            while not Path("asleep").exists():
                time.sleep(0.01)
        os.write(tell, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    worker_pid = int(os.read(told, 100))
    os.close(told)
    os.close(tell)
    deadline = time.monotonic() + 10
    while is_running(worker_pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(worker_pid)


@pytest.mark.processes
@needs_fork
@pytest.mark.filterwarnings("ignore::tutelage.tasks.VerifierWarning")
def test_a_verifier_that_forks_changes_no_verdict(rewards: None) -> None:
    with Verifier("rewards:forking") as verifier:
        pairs = [("waits", "no"), ("a", "b"), ("a", "a"), ("b", "a")] * 5
        assert verifier.verify_many(pairs) == [response == answer for response, answer in pairs]


@pytest.mark.processes
@needs_fork
def test_a_child_that_leaves_the_session_delays_no_verdict(rewards: None, tmp_path: Path) -> None:
    with Verifier("rewards:forking", timeout_seconds=30.0) as verifier:
        started = time.monotonic()
        with pytest.warns(VerifierWarning, match="it ended its process"):
            assert not verifier.verify("leaves", str(tmp_path / "child"))
        assert time.monotonic() - started < 20
        assert verifier.verify("a", "a")
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)  # its parent ended by itself and killed no child


@pytest.mark.processes
@needs_fork
@pytest.mark.filterwarnings("ignore::tutelage.tasks.VerifierWarning")
@pytest.mark.parametrize("way", ["fork", "past Python"])
def test_a_worker_that_hangs_with_a_child_of_its_own_session_is_left_in_time(
    rewards: None, tmp_path: Path, way: str
) -> None:
    with Verifier("rewards:hanging", timeout_seconds=1.0) as verifier:
        check_verifier("rewards:hanging")
        started = time.monotonic()
        assert not verifier.verify(way, str(tmp_path / "child"))
        assert verifier.num_timeouts == 1
        assert time.monotonic() - started < 20
        assert verifier.verify("fine", "")
    child = int((tmp_path / "child").read_text())
    if Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        assert not is_running(child)
    else:
        os.kill(child, signal.SIGKILL)


@pytest.mark.processes
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the pipes are found through /proc")
@pytest.mark.filterwarnings("ignore::tutelage.tasks.VerifierWarning")
def test_what_is_written_into_the_pipe_is_taken_for_no_reply(rewards: None) -> None:
    with Verifier("rewards:meddling") as verifier:
        assert verifier.verify_many([("answers", "no"), ("a", "b"), ("a", "a")]) == [False, False, True]
        assert verifier.verify_many([("babbles", "babbles"), ("a", "b"), ("a", "a")]) == [False, False, True]
        assert verifier.verify_many([("closes", "closes"), ("a", "b"), ("a", "a")]) == [False, False, True]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.processes
def test_a_script_needs_no_main_guard_and_its_worker_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            r"""
            from tutelage.tasks import verifiers, verify

            print(verify("math", r"\boxed{3 + y}", "y + 3"))
            print(verifiers._kept_verifiers["math"]._worker.process.pid)
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    verdict, pid = done.stdout.splitlines()
    assert verdict == "True"
    assert not is_running(int(pid))


@pytest.mark.processes
def test_a_script_that_is_its_own_verifier_starts_no_chain_of_workers(
    rewards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INSIDE_WORKER, "1")  # as in the worker that imports the script once more
    with pytest.raises(ConfigurationError, match=r'put what the script does under `if __name__ == "__main__":`'):
        check_verifier("rewards:contains")
    with Verifier("math") as verifier:  # a user's function may well ask for these
        assert verifier.verify(r"\boxed{3 + y}", "y + 3")


@pytest.mark.processes
def test_an_answer_may_take_only_so_much_memory(rewards: None) -> None:
    with Verifier("rewards:fragile", memory_limit_gib=0.5) as verifier:
        with pytest.warns(VerifierWarning, match=r"'rewards:fragile' failed on a response \(MemoryError"):
            assert not verifier.verify("hungry", "")
        assert verifier.verify("fine", "")


def test_a_users_function_is_found_in_the_current_directory(rewards: None) -> None:
    check_verifier("rewards:contains")
    with Verifier("rewards:contains") as verifier:
        assert verifier.verify_many([("a\n\x00\ud83d b", "\ud83d"), ("a", "b")]) == [True, False]
    with Verifier("rewards:Family.check") as verifier:
        assert verifier.verify("a", "a")


def test_scores_are_right_from_one_half_up(rewards: None) -> None:
    with Verifier("rewards:score") as verifier:
        assert (
            verifier.verify_many([(s, "") for s in ("1", "0.5", "0.49", "0", "-1", "nan")]) == [True] * 2 + [False] * 4
        )
        with pytest.warns(VerifierWarning, match="returned None; expected True, False or a score"):
            assert not verifier.verify("none", "")
        assert not verifier.verify("text", "")


def test_a_users_errors_count_as_wrong_with_one_warning(rewards: None) -> None:
    with Verifier("rewards:fragile") as verifier:
        with pytest.warns(
            VerifierWarning, match=r"'rewards:fragile' failed on a response \(ValueError: .*; expected a verdict"
        ):
            assert not verifier.verify("raise", "")
        assert verifier.verify_many([("raise", ""), ("exit", ""), ("die", ""), ("fine", "")]) == [False] * 3 + [True]


@pytest.mark.processes
def test_a_users_function_is_bounded_in_time(rewards: None) -> None:
    with Verifier("rewards:fragile", timeout_seconds=1.0) as verifier:
        with pytest.warns(VerifierWarning, match=r"took longer than 1 seconds"):
            assert not verifier.verify("sleep", "")
        assert verifier.verify("fine", "")


def test_callables_run_right_here() -> None:
    calls = []

    def judge(response: str, answer: str) -> float:
        calls.append(response)
        return 1 / int(answer)

    assert verify(judge, "a", "1") is True
    assert verify(judge, "a", "3") is False
    with pytest.warns(VerifierWarning, match=r"judge failed on a response \(ZeroDivisionError"):
        assert verify(judge, "a", "0") is False
    assert len(calls) == 3


def test_known_tasks_pass_the_check() -> None:
    for task in ("math", "exact", lambda response, answer: True):
        check_verifier(task)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("maths", r"data\.verifier is 'maths'; expected \"math\", \"exact\".* Did you mean 'math'\?"),
        ("", r"data\.verifier is ''; expected .* named like"),
        ("not a module:function", "expected"),
        ("rewards:", "expected"),
        (3, "data.verifier is 3; expected"),
        ("rewards:missing", r"cannot be loaded \(AttributeError: .*missing.*expected it to import from"),
        ("rewards:not_a_function", r"cannot be loaded \(TypeError: .*is a int, not a function"),
        ("no_such_module:check", r"cannot be loaded \(ModuleNotFoundError: .*no_such_module"),
    ],
)
def test_unusable_tasks_are_refused(rewards: None, task: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_verifier(task)
    with pytest.raises(ConfigurationError, match=message):
        verify(task, "a", "b")


def test_math_without_math_verify_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"math-verify is not installed; .*pip install math-verify"):
        check_verifier("math")


@pytest.mark.parametrize("bound", ["timeout_seconds", "memory_limit_gib"])
def test_bounds_are_positive(bound: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{bound} of a verifier is 0; expected more than 0"):
        Verifier("math", **{bound: 0})


@pytest.mark.processes
def test_the_kept_verifier_serves_every_call(rewards: None) -> None:
    assert verify("exact", "so\nParis", "Paris")
    assert verify("math", r"\boxed{3 + y}", "y + 3")
    found = []
    for _ in range(2):
        assert verify("rewards:telling", "pid", "worker")
        found.append(Path("worker").read_text())
    assert found[0] == found[1]


real_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared data sets are not on this machine")


@pytest.mark.sweeps
@real_data
@pytest.mark.parametrize("name", ["benchmarks/gsm8k", "prompts/gsm8k_train"])
def test_gsm8k_solutions_are_right(math: Verifier, name: str) -> None:
    with (SHARED_DATA / f"{name}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert all(math.verify_many((row["solution"], row["answer"]) for row in rows))
    assert all(math.verify_many((f"It is {row['answer']}.", row["solution"]) for row in rows))
    assert not any(math.verify_many((row["solution"] + "1", row["answer"]) for row in rows))


@pytest.mark.sweeps
@real_data
@pytest.mark.parametrize("name", ["math500", "olympiad", "amc", "aime24"])
def test_reference_answers_are_right_and_algebra_can_read_them(
    math: Verifier, algebra: WorkerProcess, name: str
) -> None:
    with (SHARED_DATA / "benchmarks" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    assert all(math.verify_many((rf"\boxed{{{answer}}}", answer) for answer in answers))
    assert all(algebra.ask(*for_algebra(answer, answer)).value for answer in answers[::10])
