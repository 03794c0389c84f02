"""The bridge to TRL where TRL is not, or is another one; what it does inside TRL's loop is in tests/trl."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from tutelage.errors import ConfigurationError
from tutelage.integrations.trl import PolicyRollout, check_version
from tutelage.policies import TrustRegion


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def version_of(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)


def test_importing_the_bridge_imports_no_trl() -> None:
    code = "import sys, tutelage.integrations.trl; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_missing_trl_is_refused_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    with pytest.raises(ConfigurationError, match=r"TRL is not installed.*pip install 'trl==1\.16\.\*'"):
        PolicyRollout(TrustRegion(kl_radius=0.01))


@pytest.mark.parametrize("version", ["1.15.2", "1.17.0", "0.29.0", "2.0.0", "1.160.0", "1.17.0.dev0"])
def test_another_version_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    with pytest.raises(ConfigurationError, match=f"TRL {version} is installed; .* made for 1.16") as refusal:
        check_version()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("version", ["1.16.0", "1.16.3"])
def test_releases_of_the_right_version_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, version)
    check_version()
