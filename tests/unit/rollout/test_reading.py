from __future__ import annotations

from tutelage.rollout.reading import batches_by_tokens


def test_batches_count_an_equal_prompt_once_and_keep_its_samples_together() -> None:
    prompts = [[1] * 9, [2] * 5, [1] * 9, [3] * 9, [2] * 5]
    sequences = [(prompt, [7] * length) for prompt, length in zip(prompts, [4, 2, 3, 1, 2], strict=True)]
    assert list(batches_by_tokens(sequences, 16)) == [[0, 2], [3], [1, 4]]
    assert list(batches_by_tokens(sequences, 1000)) == [[0, 2, 3, 1, 4]]


def test_a_sequence_longer_than_the_limit_gets_a_batch_of_its_own() -> None:
    sequences = [([1, 2], [3] * length) for length in (1, 50, 2)]
    assert sorted(map(sorted, batches_by_tokens(sequences, 10))) == [[0, 2], [1]]
    assert list(batches_by_tokens([], 10)) == []
