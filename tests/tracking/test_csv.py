import json
from pathlib import Path

import pandas as pd

from selfcontrast.tracking import CsvTracking


def test_csv_files_hold_metrics_tables_and_summary(tmp_path: Path) -> None:
    with CsvTracking().run("a name", {}, tmp_path) as tracker:
        tracker.log("sft", {"step": 1, "loss": 0.5})
        tracker.log("sft", {"step": 2, "loss": 0.25})
        tracker.log("sft", {"step": 2, "validation_loss": 0.75})
        tracker.log("sft", {"loss": 0.125, "step": 3})
        tracker.log("align", {"step": 1, "margin": 2.0})
        tracker.table("samples", pd.DataFrame({"prompt": ['a, "b"'], "answer": ["c\nd"]}))
        tracker.summary({"value": 0.75})
    assert (tmp_path / "metrics/sft.csv").read_text() == (
        "step,loss,validation_loss\n1,0.5,\n2,0.25,\n2,,0.75\n3,0.125,\n"
    )
    assert (tmp_path / "metrics/align.csv").read_text() == "step,margin\n1,2.0\n"
    assert pd.read_csv(tmp_path / "tables/samples.csv").to_dict("records") == [{"prompt": 'a, "b"', "answer": "c\nd"}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"value": 0.75}
