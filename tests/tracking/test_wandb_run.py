from pathlib import Path

import pytest
import wandb
from wandb_runs import online

from selfcontrast.preemption import ENDED, EarlyStop
from wandb_server import serving


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (EarlyStop(0), 0, {"stopped": "early"}),
        (SystemExit(ENDED), 143, {"error": "terminated: the same command goes on from there"}),
        (KeyboardInterrupt(), 1, {"error": "KeyboardInterrupt: "}),
    ],
)
def test_how_a_job_was_ended_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: dict[str, str]
) -> None:
    def job() -> None:
        with tracked.run("a name", {}, tmp_path):
            raise error

    with serving() as server:
        tracked = online(monkeypatch, server)
        with pytest.raises(type(error)):
            job()
        wandb.teardown()
    (run,) = server.runs.values()
    assert run.exit_code == code
    assert told.items() <= run.summary.items()
    assert ("stopped early" in run.fields["tags"]) == ("stopped" in told)
