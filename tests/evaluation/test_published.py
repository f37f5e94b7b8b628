"""Published figures: none without its source, and each beside the number of ours that it is to be compared with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from selfcontrast.errors import UserError
from selfcontrast.evaluation.published import FOLDER, Figure, beside, read_figures

ENTRY = {
    "system": "Self-Contrast",
    "negatives": 4,
    "benchmark": "reward",
    "what": "win rate over target",
    "figure": 12.5,
    "source": "a test",
    "page": 3,
}


def file(folder: Path, *entries: Any) -> str:
    path = folder / "figures.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return str(path)


@pytest.mark.parametrize("name", ["hh_rlhf", "ultrachat", "nectar"])
def test_the_files_of_the_package_are_well_formed_and_invent_nothing(name: str) -> None:
    assert read_figures(name) == []
    entries = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert {(e["system"], e["negatives"]) for e in entries} == {
        ("SFT", None),
        ("DPO_std", 1),
        ("SPIN", 1),
        *(("Self-Contrast", count) for count in (1, 2, 4, 8, 16)),
    }
    assert {(e["figure"], e["source"], e["page"]) for e in entries} == {(None, None, None)}


def test_what_is_filled_in_is_read(tmp_path: Path) -> None:
    empty = ENTRY | {"figure": None, "source": None, "page": None}
    assert read_figures(file(tmp_path, ENTRY, empty)) == [Figure(**ENTRY)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ENTRY | {"page": None}, r"figures\.yaml, entry 2: a figure needs its source and page"),
        (ENTRY | {"source": ""}, r"entry 2: a figure needs its source and page"),
        (ENTRY | {"figure": "many"}, r"entry 2: figure: "),
        (ENTRY | {"seed": 1}, r"entry 2: it must have the keys system, negatives, "),
        ({"system": "SFT"}, r"entry 2: it must have the keys"),
        ("SFT", r"entry 2: it must have the keys"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_figures(file(tmp_path, ENTRY, entry))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"published=nothing_so: cannot be read"):
        read_figures("nothing_so")
    (tmp_path / "figures.yaml").write_text("system: SFT")
    with pytest.raises(UserError, match="a list of figures"):
        read_figures(str(tmp_path / "figures.yaml"))


def test_each_stands_beside_the_number_of_its_system_its_k_and_its_measure() -> None:
    value = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    lines = [
        {"system": "SFT", "what": "win rate over target", "kind": "share", "value": {**value, "estimate": 0.3}},
        {"system": "Self-Contrast", "what": "win rate over target", "kind": "share", "value": value},
    ]
    figures = [
        Figure("SFT", None, "reward", "win rate over target", 1.0, "s", 1),
        Figure("Self-Contrast", 4, "reward", "win rate over target", 2.0, "s", 1),
        Figure("Self-Contrast", 8, "reward", "win rate over target", 3.0, "s", 1),  # another K
        Figure("Self-Contrast", 4, "mt_bench", "mean", 4.0, "s", 1),  # not measured here
        Figure("SPIN", 1, "reward", "win rate over target", 5.0, "s", 1),  # no system of this run
        Figure("SFT", None, "lm_eval", "gsm8k acc", 6.0, "s", 1),
    ]
    found = beside(figures, 4, {"reward": {"lines": lines}}, {"SFT": {"gsm8k": {"acc": 0.25}}})
    told = [(row["published"]["figure"], (row["measured"] or {}).get("estimate")) for row in found]
    assert told == [(1.0, 0.3), (2.0, 0.5), (4.0, None), (6.0, 0.25)]
