from pathlib import Path

import pytest
import wandb
from wandb_runs import online

from selfcontrast.preemption import ENDED, EarlyStop
from wandb_server import serving


@pytest.mark.parametrize(
    ("error", "code", "summary"),
    [
        (EarlyStop(0), 0, {"stopped": "early"}),
        (SystemExit(ENDED), 143, {"error": "terminated; the same command resumes it"}),
        (KeyboardInterrupt(), 1, {"error": "KeyboardInterrupt: "}),
    ],
)
def test_run_records_how_its_job_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, summary: dict[str, str]
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
    assert summary.items() <= run.summary.items()
    assert ("stopped early" in run.fields["tags"]) == ("stopped" in summary)
