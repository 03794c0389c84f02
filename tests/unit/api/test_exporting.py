"""A student is exported with its card and, on request, put on the hub: what is asked in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.tiny_run import write_run_file
from tutelage import export
from tutelage.cli import app
from tutelage.config import build_run, load_config
from tutelage.errors import OutputExistsError
from tutelage.models import load_tokenizer
from tutelage.training import Observer, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exporting")
    path = write_run_file(folder)
    few = ["steps=2", "policy=student", "data.verifier=exact", "evaluation.every=2"]
    train(build_run(load_config(path, few)), Observer())
    return folder / "run"


@pytest.mark.runs
def test_a_checkpoint_has_a_card_and_another_model_has_none(run: Path, tmp_path: Path) -> None:
    for place, model in (("one", run), ("two", run / "checkpoints/step-000002")):
        found = export(model, tmp_path / place)
        assert found.url is None and found.source.endswith("step-000002")
        card = (tmp_path / place / "README.md").read_text()
        assert "the weights after 2 of 2 steps" in card and "| sums | 3 x 2" in card
        load_tokenizer(str(tmp_path / place))
    export(run.parent / "student", tmp_path / "plain")
    assert not (tmp_path / "plain/README.md").exists()


@pytest.mark.runs
def test_a_model_goes_to_the_hub_on_request_only(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def uploaded(folder: Path, name: str, *, private: bool) -> str:
        asked.append((sorted(path.name for path in folder.glob("README.md")), name, private))
        return f"https://hub/{name}"

    monkeypatch.setattr("tutelage.api.exporting.check_upload", lambda name: asked.append(("check", name)))
    monkeypatch.setattr("tutelage.api.exporting.upload_model", uploaded)
    command = ["export", str(run), "--output"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "one")]).exit_code == 0 and asked == []
    done = CliRunner().invoke(app, [*command, str(tmp_path / "two"), "--push", "me/it", "--public"])
    assert (
        asked == [("check", "me/it"), (["README.md"], "me/it", False)] and "and       https://hub/me/it" in done.output
    )


def test_a_refused_upload_costs_no_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str) -> None:
        raise OutputExistsError(name)

    monkeypatch.setattr("tutelage.api.exporting.check_upload", refuses)
    with pytest.raises(OutputExistsError):
        export(run, tmp_path / "one", push="me/it")
    assert list(tmp_path.iterdir()) == []
