"""Check that docs/metrics.md has every value that a real job logs, and no other value."""

import re
from pathlib import Path
from typing import Any

import pytest

from jobs import ROOT, Finished
from selfcontrast.results import Result
from selfcontrast.tracking.tracker import NullTracker

TRAINING, SUMMARY = (ROOT / "docs" / "metrics.md").read_text().split("\n## Summary\n")
# Metrics that the tiny job does not log.
ELSEWHERE = {"mfu", "lm_eval/{system}/{task}/{metric}"}


def documented_names(section: str) -> set[str]:
    """Return the names in the first column of a section's tables."""
    first = (row.split("|")[1] for row in section.splitlines() if row.startswith("| `"))
    return {name for column in first for name in re.findall(r"`([^`]+)`", column)}


def names_under(heading: str) -> set[str]:
    return documented_names(TRAINING.split(f"\n### {heading}\n")[1].split("\n### ")[0])


def compare(documented: set[str], logged: set[str]) -> None:
    patterns = {name: re.sub(r"\\\{\w+\\\}", ".+", re.escape(name)) for name in documented}
    unknown = {key for key in logged if not any(re.fullmatch(pattern, key) for pattern in patterns.values())}
    assert unknown == set(), "not in docs/metrics.md"
    never_logged = {name for name, pattern in patterns.items() if not any(re.fullmatch(pattern, key) for key in logged)}
    assert never_logged <= ELSEWHERE, "in docs/metrics.md, and not logged"


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.values: set[str] = set()

    def summary(self, values: Any) -> None:
        self.values |= set(values)


@pytest.mark.parametrize(("stage", "heading"), [("sft", "SFT alone"), ("align", "Align alone")])
def test_page_has_every_value_of_a_training_step(stage: str, heading: str, finished: Finished) -> None:
    logged = {name for record in finished.result["histories"][stage] for name in record}
    compare(names_under("SFT and align") | names_under(heading), logged)


def test_page_has_every_value_of_the_summary(finished: Finished) -> None:
    recorder, folder = Recorder(), Path(finished.folder / "out")
    Result.read(folder).track(recorder, folder)
    compare(documented_names(SUMMARY), recorder.values)


def test_compare_finds_a_missing_and_a_superfluous_name() -> None:
    compare({"loss", "margin_rank_{j}"}, {"loss", "margin_rank_2"})
    with pytest.raises(AssertionError, match="grad_norm"):
        compare({"loss"}, {"loss", "grad_norm"})
    with pytest.raises(AssertionError, match="gone"):
        compare({"loss", "gone"}, {"loss"})
