"""Every command that a reader is told to type, run as it stands, with small settings after it."""

import json
import re
import shlex
from pathlib import Path

import pytest

from jobs import ROOT, TINY, run_train
from tiny import policy_folder

DOCUMENTS = ("README.md", "conf/config.yaml", "conf/data/jsonl.yaml")
COMMAND = re.compile(r"python train\.py((?: [^\s#`]+)*?)(?=\s{2,}|\s*$|\s+#|`)", re.MULTILINE)
COMMANDS = sorted({found.strip() for name in DOCUMENTS for found in COMMAND.findall((ROOT / name).read_text())})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands name, and one store for all of them."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [{"prompt": f"Say the number {i}.", "completion": f"It is {i}."} for i in range(60)]
    for name in ("my_data.jsonl", "FILE"):
        (folder / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("my_model", "NAME_OR_FOLDER"):
        policy_folder(folder / name)
    return folder


def test_the_readme_shows_commands() -> None:
    assert "negatives=4 trainer.lr=5e-5" in COMMANDS
    assert "-m negatives=1,4,8,16" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, workplace: Path) -> None:
    given = [word.replace("path=FILE", "path=FILE.jsonl") for word in shlex.split(command)]
    own_data, own_model = any("data=jsonl" in w for w in given), any("model=hf" in w for w in given)
    small = [s for s in TINY if not (own_data and s.startswith("data.")) and not (own_model and s.startswith("model."))]
    if any(word.startswith("-m") for word in given):
        small = [s if not s.startswith("filter.max") else "filter.max_negatives=16" for s in small]
        small = [s if not s.startswith("generator.samples") else "generator.samples=24" for s in small]
        small += [f"hydra.sweep.dir={workplace / 'sweep'}"]
    small = [s for s in small if s.split("=")[0] not in {word.split("=")[0] for word in given}]
    if "--help" in given:
        small = []
    ended = run_train(*given, *small, "tracking=none", cwd=workplace)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
