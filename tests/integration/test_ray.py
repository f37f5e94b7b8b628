"""A whole job whose sampling and embedding run on Ray."""

from pathlib import Path

from jobs import TINY, Finished, read_result, run_train, stages


def test_a_job_on_ray_has_the_artifacts_and_the_numbers_of_one_without(finished: Finished, tmp_path: Path) -> None:
    ended = run_train(*TINY, "engine=ray", "engine.actors=1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert not any(stage["cached"] for stage in result["stages"])
    for name, stage in stages(finished.result).items():
        own = stages(result)[name]
        assert own["key"] == stage["key"]
        files = {file.name: file.read_bytes() for file in Path(stage["path"]).glob("*.parquet")}
        assert {file.name: file.read_bytes() for file in Path(own["path"]).glob("*.parquet")} == files, name
    for part in ("value", "comparison", "samples", "negatives_shown", "similarities"):
        assert result[part] == finished.result[part], part
