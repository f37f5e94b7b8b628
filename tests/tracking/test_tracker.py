from pathlib import Path

import pandas as pd
import pytest
from wandb_runs import tracking

from selfcontrast.store import Artifact
from selfcontrast.tracking import NoTracking, WandbTracking


@pytest.mark.parametrize("disabled", [NoTracking(), tracking("disabled")])
def test_disabled_tracking_writes_nothing(
    tmp_path: Path, artifacts: tuple[Artifact, Artifact], disabled: NoTracking | WandbTracking
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    disabled.check()
    with disabled.run("a name", {"negatives": 2}, folder) as tracker:
        tracker.log("sft", {"step": 1, "loss": 1.0})
        tracker.table("samples", pd.DataFrame({"prompt": ["a"]}))
        tracker.artifact(artifacts[1], [artifacts[0]])
        tracker.summary({"value": 0.75})
        tracker.files(report)
    assert list(folder.rglob("*")) == []
