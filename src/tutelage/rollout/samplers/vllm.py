"""vLLM as a sampler: beside this process, or as a server.

Weights travel as a model folder that vLLM reads again in place. That works the same for both, on any device, and for
every architecture that vLLM can load; the prefix cache, which the old weights made, is dropped. Tokens stay ids on both
ways: nothing is turned into text and back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.errors import ConfigurationError, ServerError, in_short
from tutelage.rollout.samplers.base import Capacity, HostedSettings, SampledAnswer, Sampler, SamplingParams
from tutelage.rollout.servers.server import Server
from tutelage.rollout.servers.vllm_answers import ServedModel, bytes_for, choice_of, logprob_of, malformed, served_model

__all__ = ["LocalVLLM", "ServedVLLM", "vllm_sampler"]

# vLLM's largest change of a logit. What it forbids is left with e^-100 of its mass.
FORBIDDEN_BIAS = -100.0
# Compiling for a CPU takes minutes, and vLLM 0.32 ends there on a part of a prompt that has its own seed.
ON_CPU = {"enforce_eager": True, "enable_chunked_prefill": False}


def vllm_sampler(settings: HostedSettings, capacity: Capacity) -> Sampler:
    """The server that a run file names, or else a vLLM beside this process."""
    if settings.server is None:
        return LocalVLLM(settings, capacity)
    return ServedVLLM(
        Server(settings.server, settings.timeout_seconds, settings.retries, capacity.max_rows, "vllm.server")
    )


@dataclass
class LocalVLLM:
    """vLLM beside this process, on the same device; started by the first `load`."""

    settings: HostedSettings
    capacity: Capacity
    _engine: Any = field(default=None, init=False, repr=False)

    def check(self, prompt: Sequence[int], num_tokens: int) -> None:
        """There is no server to ask."""

    def load(self, folder: Path) -> None:
        if self._engine is None:
            self._engine = self._start(folder)
            return
        try:
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
            self._engine.reset_prefix_cache()
        except Exception as problem:
            raise _ended(problem) from problem

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[SampledAnswer]:
        import vllm

        bias = dict.fromkeys(params.forbidden_ids, FORBIDDEN_BIAS) or None
        fields = _fields(params) | {"logit_bias": bias, "detokenize": False}
        parameters = [vllm.SamplingParams(**fields, seed=seed) for seed in seeds]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            done = self._engine.generate(asked, parameters, use_tqdm=False)
        except Exception as problem:
            raise _ended(problem) from problem
        return [_from_engine(answer.outputs[0]) for answer in done]

    def _start(self, folder: Path) -> Any:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import LLM
        except ImportError as problem:
            raise ConfigurationError(
                f"rollout.engine is 'vllm', but vLLM cannot be imported ({problem}). Install it: pip install "
                "'tutelage[vllm]', or set vllm.server to a server that runs."
            ) from problem
        settings = {
            "dtype": self.settings.dtype,
            "max_model_len": self.capacity.max_tokens,
            "max_num_seqs": self.capacity.max_rows,
            "gpu_memory_utilization": self.settings.memory_share,
            "logprobs_mode": "processed_logprobs",  # under the temperature that draws
            **(ON_CPU if self.capacity.device == "cpu" else {}),
            **(self.settings.options or {}),
        }
        try:
            return LLM(str(folder), **settings)
        except Exception as problem:
            raise ServerError(
                f"vLLM did not start: {in_short(problem)}. Lower vllm.memory_share or set vllm.options to what it "
                "needs; its own messages are above."
            ) from problem


@dataclass
class ServedVLLM:
    """A vLLM server whose model is the student; it must be started with VLLM_SERVER_DEV_MODE=1 to take new weights.

    Raises:
      ServerError: see `Server`.
    """

    server: Server
    _name: str | None = field(default=None, init=False, repr=False)

    def check(self, prompt: Sequence[int], num_tokens: int) -> ServedModel:
        """Ask for one token before anything is computed; its numbers are compared once the server has our weights.

        Args:
          prompt: that an answer may begin with.
          num_tokens: of the longest prompt with its answer.
        """
        model = served_model(self.server)
        limit = model.max_tokens
        if limit is not None and num_tokens > limit:
            raise ServerError(
                f"a prompt and its answer may have {num_tokens} tokens, and {self.server.url} holds {limit}. Start it "
                f"with --max-model-len {num_tokens}, or lower rollout.max_new_tokens and evaluation.max_new_tokens."
            )
        # Harmless, and there only beside the routes that take new weights.
        self.server.post("/reset_prefix_cache")
        self.sample([prompt], [0], SamplingParams(1.0, 1, (), ()))
        return model

    def load(self, folder: Path) -> None:
        weights = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.server.post("/collective_rpc", weights)
        self.server.post("/reset_prefix_cache")

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams
    ) -> list[SampledAnswer]:
        self._name = name = self._name or served_model(self.server).name
        shared = _fields(params) | {
            "model": name,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }
        bodies = [{**shared, "prompt": list(prompt), "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)]
        entries = params.max_new_tokens * (len(params.stop_ids) + 2) + max(
            (len(prompt) for prompt in prompts), default=0
        )
        answers = self.server.post_all("/v1/completions", bodies, max_bytes=bytes_for(entries))
        where = f"{self.server.url}/v1/completions"
        return [
            _from_server(choice_of(answer, where, name, len(prompt)), where, prompt, params)
            for answer, prompt in zip(answers, prompts, strict=True)
        ]


def _fields(params: SamplingParams) -> dict[str, Any]:
    """As `vllm.SamplingParams` and /v1/completions both call it; no default of the model is left in force."""
    return {
        "temperature": params.temperature,
        "max_tokens": params.max_new_tokens,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(params.stop_ids),
        "ignore_eos": True,
        "logprobs": len(params.stop_ids),
        # Beside the sampled token, so that all ways of stopping can be one event.
        "logprob_token_ids": list(params.stop_ids) or None,
        "logit_bias": {str(i): FORBIDDEN_BIAS for i in params.forbidden_ids} or None,
    }


def _from_engine(output: Any) -> SampledAnswer:
    places = [{i: entry.logprob for i, entry in place.items()} for place in output.logprobs]
    tokens = list(output.token_ids)
    return SampledAnswer(tokens, [place[token] for place, token in zip(places, tokens, strict=True)], places[-1])


def _from_server(choice: Mapping[str, Any], where: str, prompt: Sequence[int], params: SamplingParams) -> SampledAnswer:
    tokens, told = choice.get("token_ids"), choice.get("logprobs")
    if tokens is None:
        raise ServerError(
            "the server does not return token ids, without which its answers would have to be cut into tokens "
            "again. Use vLLM 0.20 or newer."
        )
    if not _are_ids(tokens) or not 0 < len(tokens) <= params.max_new_tokens:
        raise malformed(where, "no list `token_ids` of such an answer", f"1 to {params.max_new_tokens} ids")
    if choice.get("prompt_token_ids") not in (None, list(prompt)):
        raise malformed(where, "another prompt's answer", "that of the tokens that were sent")
    ends = [place for place, token in enumerate(tokens) if token in params.stop_ids]
    # Without a stop id, only the length limit ends an answer: the server's own limit would be learned as ours.
    if ends[:1] != [len(tokens) - 1] and (ends or len(tokens) < params.max_new_tokens):
        found = f"an answer of {len(tokens)} tokens that " + ("goes on after its end" if ends else "has no end")
        raise malformed(where, found, f"one that ends at its first stop id, or after {params.max_new_tokens} tokens")
    own, tops = (told.get(name) if isinstance(told, dict) else None for name in ("token_logprobs", "top_logprobs"))
    if not (isinstance(own, list) and isinstance(tops, list) and len(own) == len(tops) == len(tokens)):
        raise malformed(where, "no `logprobs` of every token", "`token_logprobs` and `top_logprobs`, one per token")
    return SampledAnswer(tokens, [logprob_of(value, where) for value in own], _named(tops[-1], where))


def _named(place: object, where: str) -> dict[int, float]:
    """Log-probabilities by token id, whose names are such as "token_id:7"."""
    if place is None:
        return {}
    if not isinstance(place, dict):
        raise malformed(where, "no object in `top_logprobs`", "log-probabilities by token")
    ids = [name.removeprefix("token_id:") for name in place]
    if not all(name.isascii() and name.isdigit() and len(name) < 10 for name in ids) or len({*map(int, ids)}) < len(
        ids
    ):
        raise malformed(where, "names in `top_logprobs` that are no token ids", 'names such as "token_id:7", each once')
    return {int(name): logprob_of(value, where) for name, value in zip(ids, place.values(), strict=True)}


def _are_ids(tokens: object) -> bool:
    return isinstance(tokens, list) and all(type(token) is int and 0 <= token < 2**31 for token in tokens)


def _ended(problem: Exception) -> ServerError:
    return ServerError(f"vLLM's engine ended: {in_short(problem)}. Its own messages are above.")
