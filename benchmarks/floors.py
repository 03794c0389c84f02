"""Do the lowest versions that pyproject.toml names really work?

    python benchmarks/floors.py
    python benchmarks/floors.py --extras --tests
    python benchmarks/floors.py --only peft datasets --with torch==2.13.0

Makes a fresh environment, installs every dependency at exactly its floor (what they need themselves is left to pip),
and does on the packaged pair what a user does: a step of TRB, one of LoRA with rows from a Parquet file, an evaluation,
an export, a report. Prints what failed, or OK; exit code 1 on a failure. The environment is removed afterwards.

`--only` puts just those packages at their floors, to find which of them fails. `--with` replaces a floor, to try
another version. `--extras` installs the trackers at their floors too, and logs to them. `--tests` runs the unit
tests there as well. The floor of vLLM is not tried: it has an environment of its own (`make test-vllm`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACKERS = ("tensorboard", "wandb", "trackio")
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis")
FLOOR = re.compile(r"([A-Za-z0-9._-]+)>=([0-9][0-9a-z.]*)")
SECONDS = 3600  # for one command; PyTorch is gigabytes
ASKED = ("--max-new-tokens", "40", "--samples", "1")

# Run in the new environment: files for the steps, and a read through `datasets`, as of a hub's data set.
PREPARATION = """
import json, sys
from pathlib import Path
import datasets, pyarrow, pyarrow.parquet, tomli_w
from tutelage.demo.embedded import embedded_files, embedded_tables

folder, trackers = Path(sys.argv[1]), sys.argv[2:]
for path, text in embedded_files(folder, steps=2, num_problems=4, seed=0).items():
    path.write_text(text)
rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "prompts.parquet")
files = str(folder / "prompts.parquet")
read = datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder), split="train")
assert read[0]["problem"] == rows[0]["problem"]

def write(name, **changed):
    tables = embedded_tables(folder, steps=2, evaluate_every=2)
    tables["rollout"] |= {"prompts_per_step": 4, "samples_per_prompt": 2, "max_new_tokens": 90}
    tables["logging"] = {"trackers": trackers}
    tables["policy"] = {"name": "trust_region", "kl_radius": 0.05}
    for table, fields in changed.items():
        tables[table] |= fields
    tables = {"name": name, "seed": 5, "output": str(folder / name), **tables}
    (folder / f"{name}.toml").write_text(tomli_w.dumps(tables))

write("plain")
write("lora", student={"adapter": {"rank": 4}}, data={"path": str(folder / "prompts.parquet")})
"""


def floors(extras: bool) -> dict[str, str]:
    """Name -> lowest version, as pyproject.toml has them; one without a floor is an error."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = list(project["dependencies"])
    if extras:
        named += [line for extra in TRACKERS for line in project["optional-dependencies"][extra]]
    found = {}
    for line in named:
        match = FLOOR.fullmatch(line.split(",")[0])
        if match is None:
            sys.exit(f"pyproject.toml names {line!r}; expected NAME>=VERSION.")
        found[match[1]] = match[2]
    return found


def done(what: str, command: Sequence[str | Path], folder: Path) -> bool:
    """Run a command in the new environment; tell how it went, and its last lines where it failed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    try:
        ended = subprocess.run(
            [str(part) for part in command],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        code, said = ended.returncode, ended.stdout + ended.stderr
    except subprocess.TimeoutExpired:
        code, said = 1, f"not ended after {SECONDS} seconds"
    print(f"{'ok    ' if code == 0 else 'FAILED'}  {what}", flush=True)
    if code != 0:
        print("\n".join(said.strip().splitlines()[-25:]), flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", action="store_true", help="the trackers too")
    parser.add_argument("--tests", action="store_true", help="run tests/unit in the environment")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="put these at their floors only")
    parser.add_argument("--with", nargs="+", default=[], metavar="NAME==VERSION", dest="replaced")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the environment goes; default: a temporary one"
    )
    asked = parser.parse_args()
    pins = {
        name: f"{name}=={version}" if asked.only is None or name in asked.only else name
        for name, version in floors(asked.extras).items()
    }
    pins |= {pin.partition("==")[0]: pin for pin in asked.replaced}
    home = Path(tempfile.mkdtemp(prefix="floors-", dir=asked.folder))
    try:
        is_whole = _tried(home, list(pins.values()), asked.extras, asked.tests)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print("OK: the lowest versions work" if is_whole else "the lowest versions do not work, see above")
    sys.exit(0 if is_whole else 1)


def _tried(home: Path, pins: Sequence[str], extras: bool, tests: bool) -> bool:
    python, work = home / "env" / "bin" / "python", home / "work"
    work.mkdir()
    print(f"Python {sys.version.split()[0]}: {' '.join(sorted(pins))}", flush=True)
    pip = (python, "-m", "pip", "install", "--quiet")
    if not (
        done("an environment", (sys.executable, "-m", "venv", home / "env"), work)
        and done("installed", (*pip, *pins, *(TEST_TOOLS if tests else ())), work)
        and done("they fit together", (python, "-m", "pip", "check"), work)
    ):
        return False
    listed = subprocess.run((python, "-m", "pip", "list", "--format", "json"), capture_output=True, text=True).stdout
    print("  ".join(f"{item['name']} {item['version']}" for item in json.loads(listed)), flush=True)
    command = (python, "-m", "tutelage")
    is_prepared = done("files, and datasets", (python, "-c", PREPARATION, work, *(TRACKERS if extras else ())), work)
    return is_prepared and all(
        [
            done("examine", (*command, "doctor", work / "plain.toml"), work),
            done("train", (*command, "train", work / "plain.toml"), work),
            done("train a LoRA, from Parquet", (*command, "train", work / "lora.toml"), work),
            done("resume", (*command, "train", work / "plain" / "config.toml", "--resume", "--set", "steps=3"), work),
            done("export", (*command, "export", work / "lora", "--output", work / "exported"), work),
            done(
                "evaluate", (*command, "evaluate", work / "exported", *ASKED, "--task", work / "problems.jsonl"), work
            ),
            done("report", (*command, "report", work / "plain", work / "lora", "--output", work / "page.html"), work),
            not tests
            or done(
                "unit tests",
                (python, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "tests/unit"),
                work,
            ),
        ]
    )


if __name__ == "__main__":
    main()
