"""Test reading a `result.json` from before the renames. The file comes from a real run, cut down to a few prompts."""

import json
import shutil
from pathlib import Path

import pytest

from selfcontrast.deprecated import current_result
from selfcontrast.evaluation.compare import row_of
from selfcontrast.report.page import write_report
from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_numbers import frame
from selfcontrast.results import RESULT, Evaluated, Result

OLD = Path(__file__).parent / "results"
INTERVAL = {"estimate", "low", "high", "n", "clusters"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(OLD / RESULT, tmp_path)
    return tmp_path


def test_result_read_from_an_old_file_has_the_new_names() -> None:
    result, old = Result.read(OLD), json.loads((OLD / RESULT).read_text())
    before, row = old["comparison"]["rows"][-1], result.comparison["rows"][-1]
    assert row["nll"] == before["surprise"]
    assert row["mean"] == {name: before["mean"][name] for name in INTERVAL} | {"confidence": 0.95}
    assert result.against_kl is not None
    assert result.against_kl["points"][-1]["kl"]["confidence"] == 0.95
    assert (result.config["label"], result.config["iterations"], result.config["fraction"]) == (
        old["name"][:16],
        1,
        0.3,
    )
    assert result.config["evaluation"]["n_bootstrap"] == 4000
    assert result.config["trainer"]["batch_size"] == 8
    assert result.config["trainer"]["_target_"] == "selfcontrast.training.optim.OptimConfig"
    assert (result.stages, result.histories, result.prompts) == (old["stages"], old["histories"], old["prompts"])


def test_current_result_does_not_change_a_current_result() -> None:
    new = current_result(json.loads((OLD / RESULT).read_text()))
    assert current_result(new) == new


def test_report_and_sweep_table_are_made_from_an_old_file(folder: Path) -> None:
    result = Result.read(folder)
    write_report(result, folder)
    assert "self-contrast-K8" in (folder / "report.html").read_text()
    row = row_of(result.comparison, "self-contrast-K8", "T=1")
    assert frame(read_sweep([folder]))["nll"].tolist() == [row["nll"]]


def test_evaluated_read_from_an_old_file_has_the_new_names(tmp_path: Path) -> None:
    old = json.loads((OLD / RESULT).read_text())
    lines = [{"what": "mean", "value": old["comparison"]["rows"][0]["mean"]}]
    content = {name: old[name] for name in ("comparison", "samples", "stages", "config", "provenance")}
    content |= {"model": "a folder", "lm_eval": {}, "benchmarks": {"dialogues": {"lines": lines}}}
    (tmp_path / RESULT).write_text(json.dumps(content))
    result = Evaluated.read(tmp_path)
    assert result.benchmarks["dialogues"]["lines"][0]["value"]["confidence"] == 0.95
    assert "nll" in result.comparison["rows"][0]
    assert result.config["label"] == "self-contrast-K8"
