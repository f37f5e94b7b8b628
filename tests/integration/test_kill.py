"""`kill -9` during sampling and again during training; then the same command goes on and ends with the same numbers."""

import signal
from pathlib import Path

import pytest

from jobs import TIMEOUT, TINY, Finished, kill_when, read_result, run_train, stages, standing
from selfcontrast.store import MANIFEST


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_polite_signal_ends_a_job_politely(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    with standing(tmp_path, [*TINY, "sft.epochs=200"], "sft/*.partial/resume/last.ckpt") as job:
        job.send_signal(sent)
        job.send_signal(signal.SIGCONT)
        _, said = job.communicate(timeout=TIMEOUT)
    assert job.returncode == code, said
    assert "Traceback" not in said
    assert "sft" not in published(tmp_path)
    if sent == signal.SIGINT:
        assert said.strip().splitlines()[-1].startswith("interrupted: ")


def published(folder: Path) -> set[str]:
    return {manifest.parts[-3] for manifest in (folder / "store").glob(f"*/*/{MANIFEST}")}


def test_a_job_killed_while_sampling_and_while_training_ends_as_if_it_had_not_been(
    finished: Finished, tmp_path: Path
) -> None:
    kill_when(tmp_path, TINY, "generate/*.partial/resume/**/*.parquet")
    assert "generate" not in published(tmp_path)
    (sampling,) = (tmp_path / "store").glob("generate/*.partial")
    shards = {file.name: file.stat().st_mtime_ns for file in sampling.rglob("*.parquet")}
    assert len(shards) == 1

    kill_when(tmp_path, TINY, "align/*.partial/resume/last.ckpt")
    assert "align" not in published(tmp_path)
    assert {"sft", "generate", "embed", "filter", "reference"} <= published(tmp_path)

    last = run_train(*TINY, cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    result = read_result(tmp_path / "out")
    assert not list((tmp_path / "store").rglob("*.partial"))
    recalled = {n for n, s in stages(result).items() if s["cached"]}
    assert recalled == {
        "data",
        "contamination",
        "sft",
        "evaluate SFT",
        "divergence SFT",
        "generate",
        "embed",
        "filter",
        "reference",
    }
    assert {n for n, s in stages(result).items() if s["resumed"]} == {"generate", "align"}
    for part in ("comparison", "value", "similarities", "samples", "negatives_shown"):
        assert result[part] == finished.result[part], part
    losses, uninterrupted = (
        [(record["step"], record["loss"]) for record in r["histories"]["align"]] for r in (result, finished.result)
    )
    assert losses == uninterrupted
