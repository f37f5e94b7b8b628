"""Kill a job (`kill -9`) during sampling and during training. The same command then ends with the same numbers."""

import re
import signal
from pathlib import Path

import pytest

from jobs import TIMEOUT, TINY, Finished, kill_when, read_result, run_train, stages, stopped_job
from selfcontrast.store import MANIFEST


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_signal_ends_a_job_without_a_traceback(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with stopped_job(tmp_path, [*TINY, "sft.epochs=200"], "sft/*.partial/resume/last.ckpt") as job:
        job.send_signal(number)
        job.send_signal(signal.SIGCONT)
        _, error = job.communicate(timeout=TIMEOUT)
    assert job.returncode == code, error
    assert "Traceback" not in error
    assert "sft" not in published(tmp_path)
    if number == signal.SIGINT:
        assert error.strip().splitlines()[-1].startswith("interrupted: ")


def published(folder: Path) -> set[str]:
    return {manifest.parts[-3] for manifest in (folder / "store").glob(f"*/*/{MANIFEST}")}


def test_job_killed_during_sampling_and_training_resumes_to_the_same_result(finished: Finished, tmp_path: Path) -> None:
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
    assert re.search(r"align: resuming after step \d+ of 32\b", last.stderr)
    result = read_result(tmp_path / "out")
    assert not list((tmp_path / "store").rglob("*.partial"))
    cached = {n for n, s in stages(result).items() if s["cached"]}
    assert cached == {
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
