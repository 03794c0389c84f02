"""The order of the prompts."""

from __future__ import annotations

from tutelage.training import PromptOrder


def test_prompts_are_walked_in_order_over_epochs() -> None:
    order = PromptOrder(num_prompts=5, prompts_per_step=2)
    assert [order.indices(step) for step in range(4)] == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_shuffled_epochs_visit_every_prompt_once_and_can_start_anywhere() -> None:
    order = PromptOrder(num_prompts=7, prompts_per_step=3, shuffles=True, seed=4)
    walked = [i for step in range(14) for i in order.indices(step)]
    epochs = [walked[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert PromptOrder(7, 3, True, 4).indices(9) == order.indices(9)
    assert PromptOrder(7, 3, True, 5).indices(0) != order.indices(0)
