"""An extension of griffe, which reads the docstrings for the Python reference: they are made Markdown first."""

from __future__ import annotations

from typing import Any

import griffe

from website.docstrings import as_markdown


class Docstrings(griffe.Extension):
    """Formulas keep their lines; "Fields:" is what griffe calls "Attributes:"."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value).replace("\nFields:\n", "\nAttributes:\n")
