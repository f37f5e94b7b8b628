"""The stages that sample and embed candidates, on Ray, within a whole job."""

import shutil
from pathlib import Path

from jobs import TINY, Finished, read_result, run_train, stages

AGAIN = ("generate", "embed", "filter")


def test_a_job_on_ray_has_the_artifacts_and_the_numbers_of_one_without(finished: Finished, tmp_path: Path) -> None:
    """What comes after the filter is recalled by its key, and rightly so: what it is made from is equal to the byte."""
    shutil.copytree(finished.folder / "store", tmp_path / "store", ignore=shutil.ignore_patterns(*AGAIN))
    ended = run_train(*TINY, "engine=ray", "engine.actors=1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert {name for name, stage in stages(result).items() if not stage["cached"]} == set(AGAIN)
    for name, stage in stages(finished.result).items():
        own = stages(result)[name]
        assert own["key"] == stage["key"]
        files = {file.name: file.read_bytes() for file in Path(stage["path"]).glob("*.parquet")}
        assert {file.name: file.read_bytes() for file in Path(own["path"]).glob("*.parquet")} == files, name
    for part in ("value", "comparison", "samples", "negatives_shown", "similarities"):
        assert result[part] == finished.result[part], part
