"""Are the servers of a run there, and do they serve what the run file expects?  One short exchange with each."""

from __future__ import annotations

from pathlib import PurePath

from tutelage.config import (
    RunAssembly,
    RunConfig,
    check_sampler,
    check_teacher_servers,
    make_sampler,
    make_served_scorers,
)
from tutelage.config.models import key_of_teacher, named_teachers
from tutelage.preflight.finding import Finding, Verdict
from tutelage.rollout import ServedModel, ServedScorer, address_of

__all__ = ["has_servers", "servers"]


def has_servers(config: RunConfig) -> bool:
    """Whether anything of the run is computed by a server."""
    return bool(config.teacher.servers) or _draws_by_server(config)


def servers(run: RunAssembly) -> Finding:
    """The teachers' servers and the student's, as `train` will ask them before its first step."""
    config, prompts, found, doubts = run.config, run.prompts.prompts, [], []
    served: dict[str | None, ServedScorer] = {}
    if config.teacher.servers:
        served = make_served_scorers(config, run.phases, run.vocabulary, run.meta_models)
    teachers = dict(named_teachers(config))
    for name, model in check_teacher_servers(config, served, prompts, run.tokenizers.teachers).items():
        role, path = "the teacher" if name is None else f"the teacher {name!r}", teachers[name].path
        url = served[name].server.url
        found.append(f"{url} serves {model.name!r} as {role}, and answers alike when asked twice")
        if not _is_named(model, path):
            key = key_of_teacher(name)
            doubts.append(f"{key}.path is {path!r}, and the server's model is called {model.name!r}")
    if _draws_by_server(config):
        drawn = check_sampler(config, make_sampler(config, run.meta_models["student"]), prompts)
        if drawn is not None:
            url = address_of(str(config.vllm.server), "vllm.server")
            found.append(f"{url} serves {drawn.name!r}, and takes the student's weights")
    if doubts:
        return Finding(
            Verdict.warning,
            "; ".join(doubts),
            "It may be the same model under another name; make sure that it is.",
            tuple(found),
        )
    return Finding(Verdict.ok, "; ".join(found))


def _draws_by_server(config: RunConfig) -> bool:
    return config.rollout.engine != "paired" and config.vllm.server is not None


def _is_named(model: ServedModel, path: str) -> bool:
    """Whether the last part of a path or id is that of the model, by whichever of its names."""
    return PurePath(path).name in {PurePath(name).name for name in (model.name, model.root) if name is not None}
