"""How do we talk to a server?  Bounded waits and sizes, retries, a clear end; what it answers is checked."""

from tutelage.rollout.servers.server import Server, address_of
from tutelage.rollout.servers.vllm_answers import ServedModel

__all__ = ["ServedModel", "Server", "address_of"]
