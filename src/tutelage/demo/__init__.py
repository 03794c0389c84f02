"""The same library on a tiny pair, on a CPU, in minutes: where are the packaged models and their word problems?"""

from pathlib import Path

from tutelage.demo.world import make_problems, problem_lines, write_problems

__all__ = ["make_problems", "problem_lines", "student_path", "teacher_path", "write_problems"]

_ASSETS = Path(__file__).parent / "assets"


def teacher_path() -> Path:
    """Return the folder of the packaged teacher: a Qwen3 model of 1.64 M parameters and its tokenizer."""
    return _ASSETS / "teacher"


def student_path() -> Path:
    """Return the folder of the packaged student: a Qwen3 model of 0.33 M parameters and the same tokenizer."""
    return _ASSETS / "student"
