"""Are the servers of a run there, and are they what the run file takes them for?  One short exchange with each."""

from __future__ import annotations

from pathlib import PurePath

from tutelage.config import (
    RunAssembly,
    RunConfig,
    check_student_server,
    check_teacher_server,
    make_served_student,
    make_served_teacher,
)
from tutelage.doctor.finding import Finding, Verdict
from tutelage.rollout import ServedModel

__all__ = ["has_servers", "servers"]


def has_servers(config: RunConfig) -> bool:
    """Whether anything of the run is computed by a server."""
    return config.teacher.server is not None or _draws_by_server(config)


def servers(run: RunAssembly) -> Finding:
    """The teacher's server and the student's, as `train` will ask them before its first step."""
    config, prompts, found, doubts = run.config, run.prompts.prompts, [], []
    if config.teacher.server is not None:
        rows = run.meta_models["teacher"].padded_vocabulary_size
        served = make_served_teacher(config, run.phases, run.vocabulary, rows)
        model = check_teacher_server(config, served, prompts, run.tokenizers.teacher)
        found.append(f"{served.server.url} serves {model.name!r} as the teacher, and answers alike when asked twice")
        if not _is_named(model, config.teacher.path):
            doubts.append(f"teacher.path is {config.teacher.path!r}, and the server's model is called {model.name!r}")
    if _draws_by_server(config):
        student = make_served_student(config)
        model = check_student_server(config, student, prompts)
        found.append(f"{student.server.url} serves {model.name!r}, and takes the student's weights")
    if doubts:
        return Finding(
            Verdict.warning,
            "; ".join(doubts),
            "Another name may stand for the same model; make sure of it.",
            tuple(found),
        )
    return Finding(Verdict.ok, "; ".join(found))


def _draws_by_server(config: RunConfig) -> bool:
    return config.rollout.engine == "vllm" and config.vllm.server is not None


def _is_named(model: ServedModel, path: str) -> bool:
    """Whether the last part of a path or id is that of the model, by whichever of its names."""
    return PurePath(path).name in {PurePath(name).name for name in (model.name, model.root) if name is not None}
