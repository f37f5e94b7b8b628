from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from wandb_runs import online

from selfcontrast.store import Artifact
from wandb_server import serving


def test_interrupted_job_resumes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: tuple[Artifact, Artifact]
) -> None:
    def job(settings: dict[str, int], steps: range, fail: bool) -> None:
        with tracked.run("a name", settings, tmp_path) as tracker:
            tracker.artifact(replace(artifacts[0], cached=not fail), [])
            for step in steps:
                tracker.log("align", {"step": step, "loss": 1 / step})
            if fail:
                raise RuntimeError("out of memory")

    with serving() as server:
        tracked = online(monkeypatch, server)
        with pytest.raises(RuntimeError, match="out of memory"):
            job({"negatives": 2}, range(1, 4), fail=True)
        (run,) = server.runs.values()
        assert run.exit_code == 1
        assert run.summary["error"] == "RuntimeError: out of memory"
        job({"negatives": 2}, range(2, 6), fail=False)  # resumed from the checkpoint of step 1
        assert list(server.runs.values()) == [run]
        job({"negatives": 2}, range(1, 3), fail=False)  # the job had finished, so this is another run
        job({"negatives": 3}, range(1, 3), fail=False)
        wandb.teardown()
    assert run.exit_code == 0
    assert run.series("align/step") == [1, 2, 3, 4, 5]
    name = f"sft-{artifacts[0].key}"
    assert (name in run.logged, run.used) == (True, [name])
    _, repeated, other = server.runs.values()
    assert (repeated.series("align/step"), repeated.used, name in repeated.logged) == ([1, 2], [name], False)
    assert other.config["negatives"] == 3


def test_run_id_from_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    with serving() as server:
        with online(monkeypatch, server).run("a name", {}, tmp_path):
            pass
        wandb.teardown()
    assert list(server.runs) == ["given"]
