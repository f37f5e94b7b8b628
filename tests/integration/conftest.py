"""Run one job that the tests of whole jobs share."""

import pytest

from jobs import SECRET, TINY, Finished, read_result, run_train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    ended = run_train(*TINY, cwd=folder, env={"WANDB_API_KEY": SECRET})
    assert ended.returncode == 0, ended.stderr
    return Finished(folder, read_result(folder / "out"), ended.stdout)
