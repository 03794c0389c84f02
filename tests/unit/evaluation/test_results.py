import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from tutelage.errors import ConfigurationError, DataError, OutputExistsError
from tutelage.evaluation import (
    Drawing,
    EvaluationSample,
    bootstrap_interval,
    pass_at_k,
    rich_table,
    summarise,
    write_evaluation,
)

HOW = {"drawing": Drawing(5, 1.0, 64, seed=3), "name": "math500", "seconds": 1.5}


def samples_PG(num_problems=6, num_samples=5):
    generator = np.random.default_rng(0)
    return (
        generator.random((num_problems, num_samples)) < np.linspace(0, 1, num_problems)[:, None],
        generator.integers(1, 65, (num_problems, num_samples)),
        generator.random((num_problems, num_samples)) < 0.7,
    )


def test_summarise_agrees_with_plain_numpy():
    correct, lengths, finished = samples_PG()
    result = summarise(correct, lengths, finished, **HOW)
    assert (result.num_problems, result.num_samples) == (6, 5)
    assert result.pass_at_1 == pytest.approx(correct.mean())
    assert result.pass_at_1_interval == bootstrap_interval(correct.mean(axis=1))
    assert list(result.pass_at_k) == [1, 2, 4]
    for k, value in result.pass_at_k.items():
        assert value == pytest.approx(np.mean([pass_at_k(5, int(row.sum()), k) for row in correct]))
    assert result.pass_at_k[1] == pytest.approx(result.pass_at_1)
    assert result.truncation_rate == pytest.approx(1 - finished.mean())
    assert result.mean_response_tokens == pytest.approx(lengths.mean())
    assert (result.name, result.temperature, result.seed, result.seconds) == ("math500", 1.0, 3, 1.5)


def test_summarise_takes_the_ks_asked_for_and_refuses_more_than_samples():
    correct, lengths, finished = samples_PG()
    assert list(summarise(correct, lengths, finished, **HOW, ks=[1, 5]).pass_at_k) == [1, 5]
    with pytest.raises(ConfigurationError, match="k is 6"):
        summarise(correct, lengths, finished, **HOW, ks=[6])


def test_summarise_of_one_problem_and_one_sample():
    result = summarise(np.array([[True]]), np.array([[9]]), np.array([[False]]), **HOW)
    assert result.pass_at_1 == 1.0
    assert result.pass_at_1_interval == (1.0, 1.0)
    assert result.pass_at_k == {1: 1.0}
    assert result.truncation_rate == 1.0


def test_summarise_refuses_shapes_that_do_not_belong_together():
    correct, lengths, finished = samples_PG()
    for arguments in [(correct, lengths[:2], finished), (correct[0], lengths[0], finished[0])]:
        with pytest.raises(DataError, match="correct, lengths and finished have shapes"):
            summarise(*arguments, **HOW)
    with pytest.raises(DataError, match="at least"):
        summarise(correct[:0], lengths[:0], finished[:0], **HOW)


def test_to_dict_is_what_json_gives_back():
    result = summarise(*samples_PG(), **HOW)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


def test_rich_table_shows_percentages_and_the_largest_k():
    results = [summarise(*samples_PG(), **HOW), summarise(*samples_PG(3, 1), **HOW | {"name": "aime"})]
    screen = io.StringIO()
    Console(width=160, file=screen).print(rich_table(results))
    text = screen.getvalue()
    assert "pass@4 %" in text and "pass@2 %" not in text
    assert "aime" in text and f"{100 * results[0].pass_at_1:.1f}" in text
    assert rich_table([]).row_count == 0


def test_write_evaluation_writes_both_files_and_nothing_else(tmp_path):
    result = summarise(*samples_PG(), **HOW)
    samples = [
        EvaluationSample(f"p{i}", 0, "x\u2028\ud800 ×\n", answer="4", correct=True, finished=False, num_tokens=3)
        for i in range(2)
    ]
    path = write_evaluation(tmp_path / "new" / "folder", result, iter(samples))
    assert json.loads(path.read_text()) == result.to_dict()
    lines = (path.parent / "math500.samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(sample) for sample in samples]
    assert sorted(file.name for file in path.parent.iterdir()) == ["math500.json", "math500.samples.jsonl"]


@pytest.mark.parametrize("existing", ["math500.json", "math500.samples.jsonl"])
def test_write_evaluation_never_overwrites(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(OutputExistsError, match="already exists"):
        write_evaluation(tmp_path, summarise(*samples_PG(), **HOW), [])
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "precious")]


def test_write_evaluation_leaves_nothing_behind_when_samples_fail(tmp_path):
    def failing():
        yield EvaluationSample("p", 0, "", "4", correct=False, finished=True, num_tokens=1)
        raise RuntimeError("decoder gone")

    with pytest.raises(RuntimeError, match="decoder gone"):
        write_evaluation(tmp_path, summarise(*samples_PG(), **HOW), failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../math500", "a\\b", ".hidden"])
def test_write_evaluation_refuses_names_that_are_no_file_stem(tmp_path, name):
    with pytest.raises(ConfigurationError, match="plain file stem"):
        write_evaluation(tmp_path, summarise(*samples_PG(), **HOW | {"name": name}), [])
