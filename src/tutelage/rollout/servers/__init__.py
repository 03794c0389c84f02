"""How do we talk to a server?  Bounded waits and sizes, retries, a clear end; what it answers is checked."""

from tutelage.rollout.servers.server import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, Server, address_of
from tutelage.rollout.servers.vllm_answers import ServedModel

__all__ = ["DEFAULT_RETRIES", "DEFAULT_TIMEOUT_SECONDS", "ServedModel", "Server", "address_of"]
