"""Run `python -m studies.gradient_error` on a tiny job, twice: the second run is cached."""

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


def test_gradient_error_writes_a_report_and_is_cached(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    first = run_train(*TINY, *SMALL, cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert first.returncode == 0, first.stderr
    first_theory = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert first_theory["model"]["prompts"] == 8
    assert [row["negatives"] for row in first_theory["model"]["curves"]] == [1, 2, 4, 1, 2, 4]
    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("<svg", "Direction of the gradient", "Bandit"):
        assert part in page
    assert "worth" in (tmp_path / "out" / "theory.md").read_text()
    again = run_train(*TINY, *SMALL, cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert all(stage["cached"] for stage in repeated["stages"])
    assert json.dumps(repeated["model"]) == json.dumps(first_theory["model"])


def test_gradient_error_with_more_negatives_than_samples_exits_with_one_line(tmp_path: Path) -> None:
    ended = run_train(*TINY, *SMALL, "theory.negatives=[7]", cwd=tmp_path, script="studies/gradient_error/__main__.py")
    assert ended.returncode == 1
    assert "theory.negatives=[7]" in ended.stderr
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()][1:] == ["error"]
