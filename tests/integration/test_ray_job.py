"""Run sampling and embedding on Ray within a whole job, and on a cluster that loses a machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from doubling import shards
from jobs import TIMEOUT, TINY, Finished, read_result, run_train, stages

pytestmark = pytest.mark.slow

REMOVED = ("generate", "embed", "filter")


def test_job_on_ray_has_the_artifacts_and_numbers_of_a_local_job(finished: Finished, tmp_path: Path) -> None:
    """Stages after the filter are cached by key. That is correct, because their inputs are equal byte for byte."""
    shutil.copytree(finished.folder / "store", tmp_path / "store", ignore=shutil.ignore_patterns(*REMOVED))
    ended = run_train(*TINY, "engine=ray", "engine.actors=1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert {name for name, stage in stages(result).items() if not stage["cached"]} == set(REMOVED)
    for name, stage in stages(finished.result).items():
        on_ray = stages(result)[name]
        assert on_ray["key"] == stage["key"]
        files = {file.name: file.read_bytes() for file in Path(stage["path"]).glob("*.parquet")}
        assert {file.name: file.read_bytes() for file in Path(on_ray["path"]).glob("*.parquet")} == files, name
    for part in ("value", "comparison", "samples", "negatives_shown", "similarities"):
        assert result[part] == finished.result[part], part


MACHINES = """
import os, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from doubling import Doubling, shards
from selfcontrast.engines.ray import Ray

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
try:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    engine = Ray(1, 1, actors=2, cpus_per_actor=1, gpus_per_actor=None, restarts=3, address="auto")
    engine.check()
    engine.run(Doubling(folder), shards(folder, [1], [2], [3], [16], [5], [6]), "cpu", "double", "number")
finally:
    cluster.shutdown()
"""


def test_cluster_that_loses_a_machine_finishes_on_the_other(tmp_path: Path) -> None:
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "-c", MACHINES, str(tmp_path)]
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=TIMEOUT)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "lost").exists()
    work = shards(tmp_path, [1], [2], [3], [16], [5], [6])
    assert [pq.read_table(shard.file)["double"].to_pylist() for shard in work] == [[2], [4], [6], [32], [10], [12]]
