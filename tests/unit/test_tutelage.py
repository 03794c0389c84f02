"""What `import tutelage` offers: by name, typed, and without loading anything before it is asked for."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage

SOURCE = Path(tutelage.__file__)


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    public = [name for name in tutelage.__all__ if not name.startswith("_")]
    assert sorted(name for names in tutelage.HOMES.values() for name in names) == sorted(public)
    assert set(public) <= set(dir(tutelage))
    tree = ast.parse(SOURCE.read_text())
    seen = {
        (node.module, alias.name)
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(module, name) for module, names in tutelage.HOMES.items() for name in names}
    assert (SOURCE.parent / "py.typed").is_file()


@pytest.mark.parametrize("name", [name for name in tutelage.__all__ if name[0].islower()])
def test_functions_are_typed_and_explained(name: str) -> None:
    function = getattr(tutelage, name)
    signature = inspect.signature(function)
    assert inspect.isfunction(function) and signature.return_annotation is not inspect.Signature.empty
    assert [each for each in signature.parameters.values() if each.annotation is inspect.Parameter.empty] == []
    assert len(signature.parameters) < 8
    text = function.__doc__ + (tutelage.train.__doc__ or "" if "`train` says" in function.__doc__ else "")
    assert [each for each in signature.parameters if each not in text] == []


def test_no_package_hides_a_function() -> None:
    """A package below `tutelage` becomes its attribute when it is imported."""
    below = {path.stem for path in SOURCE.parent.iterdir()}
    assert not below & set(tutelage.__all__)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tutelage' has no attribute 'trian'"):
        _ = tutelage.trian


def test_the_import_loads_nothing() -> None:
    code = "import sys, tutelage; dir(tutelage); print([name for name in sys.modules if name.startswith('tutelage.')]"
    code += " + sorted({'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
