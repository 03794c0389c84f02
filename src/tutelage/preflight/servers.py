"""Are the servers of a run there, and do they serve what the run file expects?  One short exchange with each."""

from __future__ import annotations

from pathlib import PurePath

from tutelage.config import (
    RunAssembly,
    RunConfig,
    check_sampler,
    check_teacher_server,
    make_sampler,
    make_served_scorer,
)
from tutelage.preflight.finding import Finding, Verdict
from tutelage.rollout import ServedModel, address_of

__all__ = ["has_servers", "servers"]


def has_servers(config: RunConfig) -> bool:
    """Whether anything of the run is computed by a server."""
    return config.teacher.server is not None or _draws_by_server(config)


def servers(run: RunAssembly) -> Finding:
    """The teacher's server and the student's, as `train` will ask them before its first step."""
    config, prompts, found, doubts = run.config, run.prompts.prompts, [], []
    if config.teacher.server is not None:
        rows = run.meta_models["teacher"].padded_vocabulary_size
        served = make_served_scorer(config, run.phases, run.vocabulary, rows)
        model = check_teacher_server(config, served, prompts, run.tokenizers.teacher)
        found.append(f"{served.server.url} serves {model.name!r} as the teacher, and answers alike when asked twice")
        if not _is_named(model, config.teacher.path):
            doubts.append(f"teacher.path is {config.teacher.path!r}, and the server's model is called {model.name!r}")
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
