"""Test the hours of a plan's stages: speeds of a finished run, of a file, and speeds that are unknown."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import ROOT
from selfcontrast.errors import UserError
from selfcontrast.planning.work import Work
from studies.paper.costs import SPEEDS, checked, from_file, hours, measured


def test_hours_of_unknown_speeds_and_amounts_are_none() -> None:
    assert hours(Work("train", None, None), {"train": 1.0}) is None
    assert hours(Work("train", 100, 0), {"score": 1.0}) is None
    assert hours(Work(None, 0, 0), {}) == 0
    assert hours(Work("train", 36000, 0), {"train": 5.0}) == 2


def test_measured_speeds_of_a_finished_run_are_per_device(tmp_path: Path) -> None:
    def stage(name: str, seconds: float, **summary: float) -> dict[str, Any]:
        return {"name": name, "seconds": seconds, "resumed": False, "summary": summary}

    result: Any = {
        "config": {"hardware": {"devices": 4, "num_nodes": 2}},
        "histories": {"align": [{"tokens_per_second": value} for value in (1.0, 800.0, 900.0)], "sft": []},
        "stages": [
            stage("generate", 10, tokens=5000, responses=90, prompts=10),
            stage("embed", 4),
            stage("reference", 2, tokens=600),
            stage("filter", 1),
        ],
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "generate": 500, "embed": 25, "score": 300}
    result["config"]["engine"] = {"actors": [1, 5], "gpus_per_actor": None}  # of the Ray engine
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "generate": 100, "embed": 5, "score": 60}
    del result["config"]["engine"]
    result["stages"][0]["resumed"] = True  # its seconds cover the last attempt only
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "score": 300}
    with pytest.raises(UserError, match=r"--measured .*no result\.json"):
        measured(tmp_path / "none")


def test_throughput_file_entries_have_sources() -> None:
    file = ROOT / "studies" / "paper" / "throughput.yaml"
    entries = yaml.safe_load(file.read_text())
    for entry in entries:
        assert from_file(file, entry["hardware"]).keys() <= set(SPEEDS)
        assert (ROOT / entry["source"].split(",")[0]).is_file()
    with pytest.raises(UserError, match=r"--hardware h100.*throughput\.yaml.*cpu-2"):
        from_file(file, "h100")


def test_speeds_without_source_or_of_unknown_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "speeds.yaml"
    file.write_text(yaml.safe_dump([{"hardware": "mine", "speeds": {"train": 1}}]))
    with pytest.raises(UserError, match=r"mine.*source"):
        from_file(file, "mine")
    for wrong in ({"trian": 1.0}, {"train": 0}, {"train": "fast"}):
        with pytest.raises(UserError, match="train, generate, score, embed"):
            checked(wrong)
