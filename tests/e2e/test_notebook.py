"""The notebooks of the documentation run from top to bottom, and hold their outputs."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_run import write_run_file

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(content: Any) -> list[Any]:
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def needs_jupyter() -> None:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install '.[notebook]' has it")


@notebook
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    """They are those of an execution from top to bottom; without errors, and without paths of a machine."""
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} >= {"stream", "display_data", "execute_result"}
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    places = (str(ROOT), str(Path.home()), tempfile.gettempdir(), "site-packages", "\\u001b")
    assert [place for place in places if place in json.dumps(outputs)] == []


@pytest.mark.runs
@pytest.mark.timeout(900)
@notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    needs_jupyter()
    from website.notebooks import executed

    done = executed(path, tmp_path)
    kept = json.loads(path.read_text())
    for now, before in zip(code_cells(done), code_cells(kept), strict=True):
        kinds = [[output["output_type"] for output in cell["outputs"]] for cell in (now, before)]
        assert kinds[0] == kinds[1], now["source"]
    assert (tmp_path / "trb.report.html").is_file()


TRAIN = """
import tutelage
tutelage.train("run.toml", {"steps": 10_000, "output": "run", "checkpoint.every": 10_000, "evaluation.sets": []})
"""
RESUME = """
run = tutelage.open_run("run")
steps = len(run.metric_records)
assert run.last_checkpoint.name == f"step-{steps:06d}", run.last_checkpoint
assert len(tutelage.resume("run", {"steps": steps + 2}, progress=False).metric_records) == steps + 2
"""


@pytest.mark.runs
@pytest.mark.processes
def test_the_stop_button_saves_and_the_kernel_goes_on(tmp_path: Path) -> None:
    needs_jupyter()
    from jupyter_client.manager import start_new_kernel

    write_run_file(tmp_path)
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        asked = client.execute(TRAIN)
        metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 240
        while not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 2):
            assert time.monotonic() < end, "no step was made"
            time.sleep(0.2)
        manager.interrupt_kernel()
        content = reply_to(client, asked)
        assert (content["status"], content["ename"]) == ("error", "RunInterrupted")
        assert "stopped by SIGINT after" in content["evalue"] and "the run is saved in run" in content["evalue"]
        content = reply_to(client, client.execute(RESUME))
        assert content["status"] == "ok", content
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def reply_to(client: Any, asked: str) -> dict[str, Any]:
    while True:
        reply = client.get_shell_msg(timeout=240)
        if reply["parent_header"].get("msg_id") == asked:
            return dict(reply["content"])
