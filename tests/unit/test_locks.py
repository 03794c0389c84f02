"""A folder has one writer: the lock ends with its process, and no child keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tutelage import locks
from tutelage.errors import OutputExistsError
from tutelage.locks import LOCK_FILE, hold, release

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks"),
]

HOLD = "import sys; from pathlib import Path; from tutelage.locks import hold; hold(Path(sys.argv[1]), 'Wait.')"
# It has the lock, and a forked child that outlives it.
HOLD_AND_FORK = f"""{HOLD}
import os, time
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
os.wait()"""


def attempt(folder: Path) -> subprocess.CompletedProcess[str]:
    """Another process tries to have the folder."""
    return subprocess.run([sys.executable, "-c", HOLD, str(folder)], capture_output=True, text=True)


def test_the_second_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    hold(tmp_path, "Wait.")
    hold(tmp_path, "Wait.")  # once more by the same process
    refused = attempt(tmp_path)
    assert refused.returncode == 1
    assert f"{tmp_path} is in use by process {os.getpid()} on " in refused.stderr
    release(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == ""
    assert attempt(tmp_path).returncode == 0


def test_a_kill_frees_the_folder_although_a_child_lives_on(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD_AND_FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(OutputExistsError, match=rf"in use by process {holder.pid} on .*\. Wait\."):
            hold(tmp_path, "Wait.")
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it is there
        hold(tmp_path, "Wait.")
        release(tmp_path)
    finally:
        os.kill(child, 9)
        holder.stdout.close()


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "lockf", no_locks)
    with pytest.warns(UserWarning, match=r"has no locks \(Operation not supported\)"):
        hold(tmp_path, "Wait.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        release(tmp_path)
