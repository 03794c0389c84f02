from __future__ import annotations

import pytest

from tutelage.tasks.notation import clean


@pytest.mark.parametrize("text", ["$18$", r"\(18\)", r"\[ 18 \]", "$$18$$", " 18. ", "{18}", "$18.$", "{$18$}."])
def test_clean_removes_what_surrounds(text: str) -> None:
    assert clean(text) == "18"


@pytest.mark.parametrize("text", ["$1$, $2$", r"\{1, 2\}", "{1}{2}", r"\left\{ x \right.", r"\$18"])
def test_clean_leaves_the_rest(text: str) -> None:
    assert clean(text) == text
