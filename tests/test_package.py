"""The wheel and the sdist: what is in them, what they say of themselves, and that the wheel works without the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import tutelage

ROOT = Path(__file__).parents[1]
MAX_WHEEL_MIB = 10  # 8 of them are the packaged pair
MAX_SDIST_MIB = 15
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
# A run of two steps, and what somebody without a clone has besides: recipes, the command.
FIRST_USE = """
import subprocess, sys
from pathlib import Path
import tutelage
from tutelage.demo import problem_lines, student_path, teacher_path

assert not (Path.cwd() / "src").exists() and "dist-packages-of-the-test" in tutelage.__file__
Path("prompts.jsonl").write_text(problem_lines(8, seed=1))
shown = [sys.executable, "-m", "tutelage", "recipes", "copy", "trb"]
subprocess.run(shown, check=True, capture_output=True)
small = {"student": student_path(), "teacher": teacher_path(), "data": "prompts.jsonl", "output": "run", "steps": 2}
small |= {"rollout.prompts_per_step": 2, "rollout.samples_per_prompt": 2, "rollout.max_new_tokens": 40}
small |= {"policy.kl_radius.steps": 1, "runtime.device": "cpu", "data.system_prompt": ""}
run = tutelage.train("trb.toml", small, progress=False)
assert run.is_finished and run.last_checkpoint is not None
print([record["step"] for record in run.metric_records], run.report("page.html").path.stat().st_size > 10_000)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, made from a copy of the files that git knows, so that nothing else can get in."""
    copy = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:  # an sdist, say
        pytest.skip("this is no clone, so which files belong to the package is not known")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (copy / name).symlink_to((ROOT / name).readlink())
            else:
                (copy / name).write_bytes((ROOT / name).read_bytes())
    result = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    assert path.name == f"tutelage-{tutelage.__version__}-py3-none-any.whl"
    assert path.stat().st_size < MAX_WHEEL_MIB * 2**20
    return zipfile.ZipFile(path)


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    return message_from_string(wheel.read(f"tutelage-{tutelage.__version__}.dist-info/METADATA").decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "src", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    expected = {name.removeprefix("src/") for name in tracked if name.startswith("src/") and (ROOT / name).is_file()}
    expected |= {f"tutelage/{name}" for name in tracked if name.startswith("recipes/") and (ROOT / name).is_file()}
    assert names == expected
    assert "tutelage/py.typed" in names, "which tells type checkers to read the annotations"


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("tutelage", tutelage.__version__)
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"vllm", "trackers", "docs", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    entry_points = wheel.read(f"tutelage-{tutelage.__version__}.dist-info/entry_points.txt").decode()
    assert entry_points.split() == ["[console_scripts]", "tutelage", "=", "tutelage.cli:main"]


def test_what_cites_the_package_names_its_version() -> None:
    assert f"\nversion: {tutelage.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {tutelage.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_makes_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    assert path.stat().st_size < MAX_SDIST_MIB * 2**20
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for name in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "tests/test_package.py",
        "docs/usage/run-file.md",
        "mkdocs.yml",
    ):
        assert (folder / name).is_file(), name
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, check=True)
    (again,) = (folder / "dist").glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(wheel.namelist())


@pytest.mark.long
def test_recipes_are_read_from_the_wheel_itself(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """A wheel is a zip file that Python imports from."""
    own = {**os.environ, "PYTHONPATH": str(wheel.filename), "PYTHONSAFEPATH": "1"}
    for words in (["-m", "tutelage", "recipes", "copy", "trb"], ["-c", "import tutelage; print(tutelage.__file__)"]):
        result = subprocess.run([sys.executable, *words], cwd=tmp_path, env=own, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "trb.toml").read_text() == (ROOT / "recipes/trb.toml").read_text()
    assert result.stdout.startswith(str(wheel.filename))


@pytest.mark.long
def test_the_wheel_works_where_there_is_no_clone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Its files are unpacked, as pip does, and used from another folder; the dependencies are those that are here."""
    installed, elsewhere = tmp_path / "dist-packages-of-the-test", tmp_path / "elsewhere"
    elsewhere.mkdir()
    wheel.extractall(installed)
    result = subprocess.run(
        [sys.executable, "-c", FIRST_USE],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines()[-1:] == ["[0, 1] True"], result.stderr[-2000:]
