"""The `tutelage` command: what a person types, and what they see."""

from tutelage.cli.app import app
from tutelage.cli.entry import main

__all__ = ["app", "main"]
