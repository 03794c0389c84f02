"""Where do keys and values lie while answers are decoded?"""

from tutelage.models.caches.base import CachedRows, CacheView, KVCache
from tutelage.models.caches.contiguous import ContiguousCache, Memory
from tutelage.models.caches.fixed import FixedCache
from tutelage.models.caches.hybrid import HybridCache, States
from tutelage.models.caches.joint import JointCache

CACHES: dict[str, type[KVCache]] = {
    "contiguous": ContiguousCache,
    "fixed": FixedCache,
    "hybrid": HybridCache,
}

__all__ = [
    "CACHES",
    "CacheView",
    "CachedRows",
    "ContiguousCache",
    "FixedCache",
    "HybridCache",
    "JointCache",
    "KVCache",
    "Memory",
    "States",
]
