"""Where does it run?  One process on one device for now; several processes plug in behind the same four names."""

from tutelage.runtime.local import LocalRuntime

__all__ = ["LocalRuntime"]
