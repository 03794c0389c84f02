"""Paths and names of files as people write them."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from tutelage.errors import ConfigurationError
from tutelage.paths import check_file_name, expanded_path


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded_path("~/models/s", "student.path") == f"{tmp_path}/models/s"
    assert expanded_path("~", "output") == str(tmp_path)
    assert expanded_path(f"~{getpass.getuser()}/x", "output").startswith("/")


@pytest.mark.parametrize("path", ["./~/x", "a/~b", "org/model", "../up/", "größe/mein modell", "hf://x", "2024", "a~"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert expanded_path(path, "data.path") == path


@pytest.mark.parametrize(
    "path", ["", "  ", "a\0b", "a\nb", "\x1b[31m", "a\u202eb", "a\udcffb", "x/" * 2049, "~nobody-of-that-name/x"]
)
def test_a_path_that_cannot_be_is_refused_by_key(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^data\.path is ") as caught:
        expanded_path(path, "data.path")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["trb", "policy=student", "a b", "größe", "v1.2", "x" * 200])
def test_a_name_that_a_folder_can_have(name: str) -> None:
    assert check_file_name(name, "name", "trb") == name


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../../x", "a/b", "a\\b", ".hidden", "a\0b", "a\nb", "ö" * 101])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^name is ") as caught:
        check_file_name(name, "name", "trb")
    assert "\n" not in str(caught.value)
