"""Run every command of the README and of two configs' comments, with small settings appended.

Commands of `docs/`, many of which need a GPU, a cluster or a server, are only composed and built.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from jobs import ROOT, TINY, TINY_MODEL, Finished, run_train
from selfcontrast.config import GROUPS, build
from tiny import policy_folder

DOCUMENTS = ("README.md", "conf/config.yaml", "conf/data/jsonl.yaml")
COMMAND = re.compile(r"python train\.py((?: [^\s#`]+)*?)(?=\s{2,}|\s*$|\s+#|`)", re.MULTILINE)

OTHER = re.compile(
    r"^python (evaluate\.py|-m studies\.paper\.reproduce|-m selfcontrast\.report) ([^#\n]+)", re.MULTILINE
)


def commands(*files: Path) -> list[str]:
    return sorted({command.strip() for file in files for command in COMMAND.findall(file.read_text())})


COMMANDS = commands(*(ROOT / name for name in DOCUMENTS))


@pytest.fixture(scope="module")
def workplace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the commands name, and one store for all."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(finished.folder / "store", folder / "store")
    rows = [{"prompt": f"Say the number {i}.", "completion": f"It is {i}.", "answer": i} for i in range(60)]
    for name in ("my_data.jsonl", "FILE"):
        (folder / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("my_model", "NAME_OR_FOLDER"):
        policy_folder(folder / name)
    return folder


def test_readme_commands_are_found() -> None:
    assert "negatives=4 trainer.lr=5e-5" in COMMANDS
    assert "-m negatives=1,4,8,16" in COMMANDS


@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.slow if "," in c else ()) for c in COMMANDS])
def test_readme_command_runs(command: str, workplace: Path) -> None:
    args = [word.replace("path=FILE", "path=FILE.jsonl") for word in shlex.split(command)]
    args = [word.replace("hardware=gpu", "hardware=cpu") for word in args]  # no test needs a GPU
    own_data, own_model = any("data=jsonl" in w for w in args), any("model=hf" in w for w in args)
    small = [s for s in TINY if not (own_data and s.startswith("data.")) and not (own_model and s.startswith("model."))]
    if any(word.startswith("-m") for word in args):
        small = [s if not s.startswith("filter.max") else "filter.max_negatives=16" for s in small]
        small = [s if not s.startswith("generator.samples") else "generator.samples=24" for s in small]
        small += [f"hydra.sweep.dir={workplace / 'sweep'}"]
    small = [s for s in small if s.split("=")[0] not in {word.split("=")[0] for word in args}]
    if "--help" in args:
        small = []
    ended = run_train(*args, *small, "tracking=none", cwd=workplace)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()


def test_readme_other_commands_run(workplace: Path) -> None:
    for k, folder in ((1, "multirun/0"), (2, "outputs/0")):
        job = (*TINY, f"negatives={k}", "tracking=none", f"hydra.run.dir={workplace / folder}")
        assert run_train(*job, cwd=workplace).returncode == 0
    small = [s for s in TINY if s not in TINY_MODEL]
    others = dict(OTHER.findall((ROOT / "README.md").read_text()))
    assert set(others) == {"evaluate.py", "-m studies.paper.reproduce", "-m selfcontrast.report"}
    measured = run_train(*others["evaluate.py"].split(), *small, "tracking=none", cwd=workplace, script="evaluate.py")
    assert measured.returncode == 0, measured.stderr
    planned = others["-m studies.paper.reproduce"].split()
    plan = run_train(*planned, cwd=workplace, script="studies/paper/reproduce.py")
    assert plan.returncode == 0, plan.stderr
    assert "evaluate SPIN" in plan.stdout
    report = [sys.executable, "-m", "selfcontrast.report", *others["-m selfcontrast.report"].split()]
    reported = subprocess.run(report, cwd=workplace, capture_output=True, text=True, timeout=300)
    assert reported.returncode == 0, reported.stderr
    assert "2 jobs" in reported.stdout


@pytest.mark.parametrize("command", commands(*sorted((ROOT / "docs").glob("*.md"))))
def test_docs_command_composes_and_builds(command: str) -> None:
    args = [
        word.replace("=N", "=1000") if word.endswith("=N") else word for word in shlex.split(command) if "=" in word
    ]
    for choice in product(*([f"{w.split('=')[0]}={v}" for v in values(w)] for w in args)):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", list(choice))
        for group in GROUPS:
            build(config[group], group)


def values(word: str) -> list[str]:
    """Return the values in an override KEY=VALUE. A sweep has several values."""
    value = word.split("=", 1)[1]
    return [value] if value[0] in "[{'\"" else value.split(",")
