"""Run the miniature's commands on a tiny job: two values of K, two seeds and a baseline give a report with verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import ROOT, TINY, run_train
from studies.claims.judge import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED

pytestmark = pytest.mark.slow


def sweep(folder: Path, *overrides: str, without: tuple[str, ...] = ()) -> list[Path]:
    """Run a sweep of the miniature with the tiny job's settings, except those in `without`. Return its results."""
    tiny = [setting for setting in TINY if setting.partition("=")[0] not in ("negatives", *without)]
    ended = run_train("-m", *tiny, "seed=1,2", f"hydra.sweep.dir={folder}", *overrides, cwd=folder.parent.parent)
    assert ended.returncode == 0, ended.stderr
    return sorted(folder.rglob("result.json"))


@pytest.fixture(scope="module")
def finished_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature") / "multirun"
    assert len(sweep(folder / "a", "+experiment=miniature", "negatives=1,4")) == 4
    sampling = ("generator.samples", "generator.max_new_tokens", "filter.max_negatives")
    assert len(sweep(folder / "b", "+experiment=miniature", "method=dpo_std", without=sampling)) == 2
    return folder


def test_claims_of_all_sweeps_have_verdicts(finished_sweeps: Path) -> None:
    command = [sys.executable, "-m", "studies.claims", str(finished_sweeps)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    text = (finished_sweeps / "claims.md").read_text()
    for claim in ("beats SFT", "beats standard DPO", "grows with K", "not merely sharper"):
        row = next(line for line in text.splitlines() if claim in line)
        verdict = row.rstrip(" |").rpartition("| ")[2]
        assert verdict.partition(":")[0] in (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE)
        assert "2 × 16" in row
    assert "The claims" in (finished_sweeps / "claims.html").read_text()
    assert "The claims" in ended.stdout


def test_methods_of_a_seed_share_the_sft_model(finished_sweeps: Path) -> None:
    results = [json.loads(file.read_text()) for file in finished_sweeps.rglob("result.json")]
    keys = {
        seed: {s["key"] for r in results if r["seed"] == seed for s in r["stages"] if s["name"] == "sft"}
        for seed in (1, 2)
    }
    assert [len(by_seed) for by_seed in keys.values()] == [1, 1]
    assert keys[1] != keys[2]
    assert len({tuple(r["prompts"]["ids"]) for r in results}) == 1
