"""`python -m studies.gradient_error` on a tiny job: the report is there, and the same again is recalled."""

import json
import shutil
from pathlib import Path

from jobs import TINY, Finished, run_train

SMALL = (
    "theory.prompts=8",
    "theory.samples=6",
    "theory.negatives=[1,2,4]",
    "theory.estimates=[2,4]",
    "theory.draws=20",
    "theory.dimensions=256",
    "theory.bandit.replicates=50",
)


def test_theory(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    first = run_train(*TINY, *SMALL, cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert first.returncode == 0, first.stderr
    found = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert found["model"]["prompts"] == 8
    assert [row["negatives"] for row in found["model"]["curves"]] == [1, 2, 4, 1, 2, 4]
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("<svg", "Where the gradient points", "Bandit"):
        assert part in page
    assert "worth" in (tmp_path / "out" / "theory.md").read_text()
    again = run_train(*TINY, *SMALL, cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert all(stage["cached"] for stage in repeated["stages"])
    assert json.dumps(repeated["model"]) == json.dumps(found["model"])


def test_more_negatives_than_samples_is_a_users_mistake(tmp_path: Path) -> None:
    ended = run_train(*TINY, *SMALL, "theory.negatives=[7]", cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert ended.returncode == 1
    assert "theory.negatives=[7]" in ended.stderr
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()][1:] == ["error"]
