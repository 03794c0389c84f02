import random

import pytest

from tutelage.diagnostics.repetition import longest_repeat, repeated_share


def stretches(tokens, length):
    return [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]


def test_both_agree_with_counting_all_stretches():
    generator = random.Random(0)
    for _ in range(300):
        tokens = [generator.randrange(generator.choice([1, 2, 3, 50])) for _ in range(generator.randrange(1, 40))]
        if generator.random() < 0.5:
            tokens = tokens + tokens[: generator.randrange(len(tokens) + 1)]
        repeats = [n for n in range(len(tokens)) if len(set(stretches(tokens, n))) < len(stretches(tokens, n))]
        assert longest_repeat(tokens) == max(repeats, default=0)
        for length in (1, 2, 4):
            grams = stretches(tokens, length)
            expected = None if len(tokens) < length else pytest.approx(1 - len(set(grams)) / len(grams))
            assert repeated_share(tokens, length) == expected


def test_by_hand():
    assert longest_repeat([7, 1, 2, 3, 8, 1, 2, 3, 9]) == 3
    assert longest_repeat([4] * 10) == 9
    assert longest_repeat([1, 2, 3]) == longest_repeat([5]) == longest_repeat([]) == 0
    assert repeated_share([1, 2, 1, 2, 1, 2, 1, 2]) == 1 - 2 / 5
