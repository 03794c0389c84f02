from __future__ import annotations

import datasets
import pytest

from tests.support.tiny_run import make_tokenizer
from tutelage.config import DataConfig, EvaluationSetConfig, build_evaluation_sets
from tutelage.tasks import BENCHMARKS, TemplateClock


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_benchmarks_name_stands_for_its_hub_data_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path, configuration=None, *, split, **_):
        asked.append((path, configuration, split))
        row = {BENCHMARKS[name].prompt_column: "How many?", BENCHMARKS[name].answer_column: "It is 7.\n#### 7"}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [problems] = build_evaluation_sets(
        [EvaluationSetConfig(path=name)], DataConfig(path="none"), make_tokenizer(), TemplateClock()
    )
    path, _, configuration = BENCHMARKS[name].path.partition(":")
    assert asked == [(path, configuration or None, BENCHMARKS[name].split)]
    assert (problems.name, len(problems.prompts)) == (name, 1)


def test_a_file_goes_before_a_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "math500").mkdir()
    with pytest.raises(ValueError, match="math500"):
        build_evaluation_sets(
            [EvaluationSetConfig(path="math500")], DataConfig(path="none"), make_tokenizer(), TemplateClock()
        )
