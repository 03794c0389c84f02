"""The `tutelage` command: what a person types, and what they see."""

from tutelage.cli.app import app, main

__all__ = ["app", "main"]
