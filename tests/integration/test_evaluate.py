"""`evaluate.py` on a finished job's policy, where it lies and as a copy."""

import shutil
from pathlib import Path
from typing import Any

from jobs import TINY, TINY_MODEL, Finished, read_result, run_train, stages

SETTINGS = [setting for setting in TINY if setting not in TINY_MODEL]


def evaluated(folder: Path, store: Path, model: Path) -> tuple[dict[str, Any], str]:
    folder.mkdir()
    env = {"SELFCONTRAST_STORE": str(store)}
    ended = run_train(f"model={model}", *SETTINGS, cwd=folder, env=env, script="evaluate.py")
    assert ended.returncode == 0, ended.stderr
    return read_result(folder / "out"), ended.stdout


def test_a_model_is_measured_as_a_job_measures_its_policy(finished: Finished, tmp_path: Path) -> None:
    policy = Path(finished.result["policy"])
    rows = [row for row in finished.result["comparison"]["rows"] if row["system"] == "Self-Contrast"]
    store = tmp_path / "store"
    shutil.copytree(finished.folder / "store", store)
    own = store / policy.relative_to(finished.folder / "store")
    recalled, printed = evaluated(tmp_path / "own", store, own)
    assert all(stage["cached"] for stage in recalled["stages"])
    assert stages(recalled)["evaluate model"]["key"] == stages(finished.result)["evaluate Self-Contrast"]["key"]
    assert "dialogues" in recalled["benchmarks"]
    assert "pairwise" not in recalled["benchmarks"]  # there is no SFT model to compare with
    assert f"{rows[0]['mean']['estimate']:.3f}" in printed

    shutil.copytree(own, tmp_path / "elsewhere")
    computed, _ = evaluated(tmp_path / "copy", store, tmp_path / "elsewhere")
    assert not stages(computed)["evaluate model"]["cached"]
    for found in (recalled, computed):
        assert [row["mean"] for row in found["comparison"]["rows"]] == [row["mean"] for row in rows]
    again, _ = evaluated(tmp_path / "again", store, tmp_path / "elsewhere")
    assert all(stage["cached"] for stage in again["stages"])


def test_no_model_is_a_users_mistake(tmp_path: Path) -> None:
    for arguments, said in (([], "model.path must be given"), (["model=./nowhere"], "no such folder")):
        ended = run_train(*arguments, cwd=tmp_path, script="evaluate.py")
        assert ended.returncode == 1
        assert said in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
