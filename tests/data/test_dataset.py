from pathlib import Path

import pyarrow.parquet as pq

from selfcontrast.data.builtin import Builtin
from selfcontrast.data.dataset import FILE, publish
from selfcontrast.data.example import SPLITS, Example


def test_publish_round_trips_examples(tmp_path: Path) -> None:
    splits = Builtin(train=24, validation=8, test=16, noise=0.1, two_turn=0.5, rejected_noise=0.3, seed=1).load()
    assert publish(tmp_path, splits) == {"train": 24, "validation": 8, "test": 16}
    rows = pq.read_table(tmp_path / FILE).to_pylist()
    for split in SPLITS:
        read_back = [Example(**{k: v for k, v in row.items() if k != "split"}) for row in rows if row["split"] == split]
        assert read_back == splits[split]
