"""Test published figures: each needs a source and is compared with the matching measured number."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcontrast.errors import UserError
from selfcontrast.evaluation.published import FOLDER, PublishedFigure, compare_published, read_figures

ENTRY = {
    "system": "Self-Contrast",
    "negatives": 4,
    "benchmark": "reward",
    "what": "win rate over target",
    "figure": 12.5,
    "source": "a test",
    "page": 3,
}


def write_figures(folder: Path, *entries: Any) -> str:
    path = folder / "figures.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return str(path)


@pytest.mark.parametrize("name", ["hh_rlhf", "ultrachat", "nectar"])
def test_read_figures_of_the_package_are_well_formed_and_empty(name: str) -> None:
    assert read_figures(name) == []
    entries = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert {(e["system"], e["negatives"]) for e in entries} == {
        ("SFT", None),
        ("DPO_std", 1),
        ("SPIN", 1),
        *(("Self-Contrast", count) for count in (1, 2, 4, 8, 16)),
    }
    assert {(e["figure"], e["source"], e["page"]) for e in entries} == {(None, None, None)}


def test_read_figures_leaves_out_empty_entries(tmp_path: Path) -> None:
    empty = ENTRY | {"figure": None, "source": None, "page": None}
    assert read_figures(write_figures(tmp_path, ENTRY, empty)) == [PublishedFigure(**ENTRY)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ENTRY | {"page": None}, r"figures\.yaml, entry 2: .*page"),
        (ENTRY | {"source": ""}, r"entry 2: .*source"),
        (ENTRY | {"figure": "many"}, r"entry 2: figure: "),
        (ENTRY | {"seed": 1}, r"entry 2: .*keys system, negatives, "),
        ({"system": "SFT"}, r"entry 2: .*keys"),
        ("SFT", r"entry 2: .*keys"),
    ],
)
def test_read_figures_unusable_entry_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_figures(write_figures(tmp_path, ENTRY, entry))


def test_read_figures_unusable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"published=nothing_so: "):
        read_figures("nothing_so")
    (tmp_path / "figures.yaml").write_text("system: SFT")
    with pytest.raises(UserError, match=r"figures\.yaml: .*list"):
        read_figures(str(tmp_path / "figures.yaml"))


def test_compare_published_matches_system_k_and_measure() -> None:
    value = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    lines = [
        {"system": "SFT", "what": "win rate over target", "kind": "share", "value": {**value, "estimate": 0.3}},
        {"system": "Self-Contrast", "what": "win rate over target", "kind": "share", "value": value},
    ]
    figures = [
        PublishedFigure("SFT", None, "reward", "win rate over target", 1.0, "s", 1),
        PublishedFigure("Self-Contrast", 4, "reward", "win rate over target", 2.0, "s", 1),
        PublishedFigure("Self-Contrast", 8, "reward", "win rate over target", 3.0, "s", 1),  # this run has K=4
        PublishedFigure("Self-Contrast", 4, "mt_bench", "mean", 4.0, "s", 1),  # this run has no MT-Bench
        PublishedFigure("SPIN", 1, "reward", "win rate over target", 5.0, "s", 1),  # this run has no SPIN
        PublishedFigure("SFT", None, "lm_eval", "gsm8k acc", 6.0, "s", 1),
    ]
    rows = compare_published(figures, 4, {"reward": {"lines": lines}}, {"SFT": {"gsm8k": {"acc": 0.25}}})
    pairs = [(row["published"]["figure"], (row["measured"] or {}).get("estimate")) for row in rows]
    assert pairs == [(1.0, 0.3), (2.0, 0.5), (4.0, None), (6.0, 0.25)]
