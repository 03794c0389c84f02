"""A hub id without a hub is known soon, and what the cache holds goes on working."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.fake_server import Fake, RawFake
from tests.support.tiny_run import write_run_file
from tutelage import hub
from tutelage.cli import main
from tutelage.errors import ConfigurationError, DataError, ModelError, OutputExistsError, ServerError
from tutelage.hub import check_hub, check_upload, upload_model
from tutelage.models import check_files, load_tokenizer
from tutelage.tasks.sources import rows_of


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A process that may use the network, with an empty cache; its hub is for the test to set."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "MAX_SECONDS", 0.3)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    hub.unreachable.cache_clear()
    yield monkeypatch
    hub.unreachable.cache_clear()
    os.environ.pop("HF_HUB_OFFLINE", None)  # monkeypatch puts back what was there


@pytest.fixture(params=["silent", "gone"])
def no_hub(request: pytest.FixtureRequest, online: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that takes connections and says nothing, and one that is not there."""
    fake = RawFake(30.0)
    if request.param == "gone":
        fake.close()
    online.setattr(constants, "ENDPOINT", fake.url)
    yield fake.url
    fake.close()


def test_an_id_is_refused_with_what_to_do(no_hub: str) -> None:
    for refused in (check_files, load_tokenizer):
        with pytest.raises(ModelError, match=rf"'owner/name' is nothing .* out of reach \({no_hub}: .*HF_HOME"):
            refused("owner/name")
    with pytest.raises(DataError, match=r"'owner/rows' is nothing .* out of reach"):
        list(rows_of("owner/rows", "train"))
    # The libraries do not wait either, here and in processes that are started.
    assert constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("kind", "name", "place"),
    [
        ("model", "owner/name", "cache/models--owner--name/snapshots/0123/config.json"),
        ("dataset", "owner/name", "cache/datasets--owner--name/snapshots/0123/rows.parquet"),
        ("dataset", "Owner/SomeRows", "datasets/Owner___some_rows/default/rows.arrow"),
    ],
)
def test_what_is_cached_is_used_with_a_word(
    online: pytest.MonkeyPatch, tmp_path: Path, kind: hub.Kind, name: str, place: str
) -> None:
    online.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.warns(UserWarning, match=rf"the hub is out of reach .*'{name}' is taken from the cache"):
        check_hub(name, kind)


def test_a_hub_that_answers_is_asked_once(online: pytest.MonkeyPatch) -> None:
    fake = Fake(lambda *_: (404, {}))
    online.setattr(constants, "ENDPOINT", fake.url)
    online.setattr(hub, "MAX_SECONDS", 20.0)
    check_hub("owner/name", "model")
    check_hub("owner/rows", "dataset")
    assert hub.unreachable() is None and not constants.HF_HUB_OFFLINE
    fake.close()


def test_who_wants_no_network_is_not_connected(online: pytest.MonkeyPatch) -> None:
    fake = RawFake()
    online.setattr(constants, "ENDPOINT", fake.url)
    online.setattr(constants, "HF_HUB_OFFLINE", True)
    check_hub("owner/name", "model")
    assert fake.num_connections == 0
    fake.close()


@pytest.mark.parametrize(
    "name", ["owner/na me", "näme", "a" * 97, "a" * 5000, "a--b", "x.git", "-x", "a\nb", "a\x00b", "[red]", ""]
)
def test_what_can_be_no_id_is_refused_without_asking(online: pytest.MonkeyPatch, name: str) -> None:
    fake = RawFake()
    online.setattr(constants, "ENDPOINT", fake.url)
    with pytest.raises(ModelError, match="cannot be a hub id") as problem:
        check_hub(name, "model")
    assert fake.num_connections == 0 and str(problem.value).isprintable() and len(str(problem.value)) < 400
    fake.close()


@pytest.mark.parametrize("name", ["owner/name", "näme", "a" * 5000, "a\nb", "[red]"])
@pytest.mark.usefixtures("no_hub")
def test_the_command_line_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run_file = write_run_file(tmp_path)
    capsys.readouterr()  # progress of writing the models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monkeypatch.setattr("sys.argv", ["tutelage", "train", str(run_file), "--set", f"student={name}"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Traceback" not in said
    assert not (tmp_path / "run").exists()


class HubClient:
    """What of huggingface_hub's client is used, and what was asked of it."""

    def __init__(self, *, files: list[str] | None = None, login: Exception | None = None, fails: bool = False) -> None:
        self.files, self.login, self.fails = files, login, fails
        self.asked: list[tuple[object, ...]] = []

    def whoami(self) -> dict[str, str]:
        if self.login is not None:
            raise self.login
        return {"name": "me"}

    def repo_exists(self, name: str) -> bool:
        return self.files is not None

    def list_repo_files(self, name: str) -> list[str]:
        return self.files or []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        self.asked.append(("create", name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.asked.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
        if self.fails:
            raise ConnectionError("cut off")


@pytest.fixture
def client(online: pytest.MonkeyPatch) -> Iterator[HubClient]:
    """A hub that answers, and the client that talks to it."""
    fake, client = Fake(lambda *_: (200, {})), HubClient()
    online.setattr(constants, "ENDPOINT", fake.url)
    online.setattr("huggingface_hub.HfApi", lambda: client)
    yield client
    fake.close()


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("files", [None, [".gitattributes"]], ids=["new", "created and empty"])
def test_a_model_is_put_on_the_hub(client: HubClient, tmp_path: Path, private: bool, files: list[str] | None) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    client.files = files
    check_upload("me/model")
    assert client.asked == [], "a check changes nothing"
    assert upload_model(tmp_path / "model", "me/model", private=private) == "https://hub/me/model"
    assert client.asked == [("create", "me/model", private, True), ("upload", "me/model", ["config.json"])]


def test_what_is_on_the_hub_is_not_overwritten(client: HubClient, tmp_path: Path) -> None:
    client.files = [".gitattributes", "README.md"]
    for refused in (lambda: check_upload("me/model"), lambda: upload_model(tmp_path, "me/model", private=True)):
        with pytest.raises(OutputExistsError, match="the hub has a model me/model already; nothing is overwritten"):
            refused()
    assert client.asked == []


def test_an_upload_that_cannot_be_is_refused_before_it_costs_anything(client: HubClient) -> None:
    for name in ("model", "a/b/c", "me/mo del", ""):
        with pytest.raises(ConfigurationError, match="is no name on the hub; expected OWNER/NAME"):
            check_upload(name)
    client.login = ValueError("no token")
    with pytest.raises(ConfigurationError, match=r"does not know who uploads me/model \(no token\)\. .*hf auth login"):
        check_upload("me/model")


def test_an_upload_without_a_network_is_refused(no_hub: str) -> None:
    with pytest.raises(ConfigurationError, match=r"me/model cannot be put on the hub, which is out of reach"):
        check_upload("me/model")


def test_an_upload_that_breaks_off_names_what_is_left(client: HubClient, tmp_path: Path) -> None:
    client.fails = True
    with pytest.raises(ServerError, match=rf"not uploaded: cut off\. The model is in {tmp_path}; .*hf upload me/model"):
        upload_model(tmp_path, "me/model", private=True)
