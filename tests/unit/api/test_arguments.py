"""Numbers within bounds, options by name, outputs that must be new, and PyTorch's threads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tutelage.api.arguments import (
    MAX_NEW_TOKENS,
    MAX_SAMPLES,
    check_numbers,
    check_output_file,
    check_output_folder,
    options_of,
    threads,
)
from tutelage.config import schema
from tutelage.errors import ConfigurationError, OutputExistsError


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"samples": 0}, "samples is 0; expected a number of at least 1 and at most 65536. Leave it out"),
        ({"samples": "4"}, "samples is '4'; expected a number"),
        ({"limit": True}, "limit is True; expected a number of at least 1. Leave it out"),
        ({"temperature": math.nan}, "temperature is nan; expected a number of at least 0"),
        ({"rows": math.inf}, "rows is inf; expected a number"),
    ],
)
def test_numbers_beyond_their_bounds_are_refused_by_name(numbers: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        check_numbers(numbers)
    assert str(refusal.value).startswith(message)


def test_what_was_not_given_and_what_has_no_bounds_passes() -> None:
    check_numbers({"samples": 2**16, "limit": None, "temperature": 0, "device": -1})


def test_an_option_that_does_not_exist_names_the_nearest() -> None:
    assert options_of({"samples": 4, "limit": None}, {"limit": 2}) == {"samples": 4, "limit": 2}
    with pytest.raises(ConfigurationError, match=r"'sample'. Did you mean samples\?"):
        options_of({"samples": 4}, {"sample": 2})
    with pytest.raises(ConfigurationError, match="samples is -1"):
        options_of({"samples": 4}, {"samples": -1})


def test_outputs_are_new(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new" / "file.jsonl")
    check_output_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    for check in (check_output_file, check_output_folder):
        with pytest.raises(OutputExistsError, match="already exists; nothing is overwritten"):
            check(tmp_path)
        with pytest.raises(ConfigurationError, match="cannot be written"):
            check(tmp_path / "file" / "below")


def test_torch_has_its_threads_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    with threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_bounds_are_the_run_files() -> None:
    assert (MAX_SAMPLES, MAX_NEW_TOKENS) == (schema.MAX_SAMPLES, schema.MAX_NEW_TOKENS)
