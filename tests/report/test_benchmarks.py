"""Test benchmarks on the page and on the terminal."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.report.benchmarks import published, radar, views
from selfcontrast.report.page import write_report
from selfcontrast.report.terminal import print_result
from selfcontrast.results import Result


def line(system: str, what: str, kind: str, estimate: float) -> dict[str, Any]:
    bounds = {"low": estimate - 0.25, "high": estimate + 0.25}
    return {
        "system": system,
        "what": what,
        "kind": kind,
        "value": {"estimate": estimate, **bounds, "n": 9, "clusters": 9, "confidence": 0.95},
    }


LINES = [
    *(
        line(system, f"category {name}", "rating", 4)
        for system in ("SFT", "Self-Contrast")
        for name in ("<i>", "b", "c")
    ),
    line("SFT", "mean", "rating", 5),
    line("Self-Contrast", "mean", "rating", 6),
    line("Self-Contrast", "difference from SFT", "difference", 1),
    line("Self-Contrast", "win rate", "share", 0.5),
]
FACTS = {"judgments": 10, "coverage": 0.9, "cost": 1.5}
HOSTILE = "<script>alert(2)</script>"
JUDGMENT = {"system": "SFT", "category": "", "question": "Why?", "answer": "a", "status": "ok", "reply": "So."}
JUDGMENTS = [
    {**JUDGMENT, "answer": HOSTILE, "reply": HOSTILE, "rating": 7.0},
    {**JUDGMENT, "status": "refused", "rating": None},
    {**JUDGMENT, "other": HOSTILE, "swapped": True, "outcome": 0.0},
    {**JUDGMENT, "other": "b", "swapped": False, "outcome": 0.625},
]
BENCHMARK = {"lines": LINES, "facts": {"SFT": FACTS, "Self-Contrast": {**FACTS, "coverage": 1.0}}, "shown": []}


@pytest.fixture
def result(make: Callable[..., Result]) -> Result:
    return replace(make(), benchmarks={"mt_bench": BENCHMARK})


def test_views_have_a_row_per_measure_and_a_column_per_system(result: Result) -> None:
    [view] = views(result)
    assert view.systems == ["SFT", "Self-Contrast"]
    assert view.rows[:3] == [
        ("mean", ["5.000 [4.750, 5.250]", "6.000 [5.750, 6.250]"]),
        ("difference from SFT", ["–", "+1.000 [+0.750, +1.250]"]),
        ("win rate", ["–", "50.0% [25.0, 75.0]"]),
    ]
    assert view.summary == "19 of 20 judgments could be used (95.0%). They cost 3.00."


def test_page_escapes_texts_of_the_data(result: Result, tmp_path: Path) -> None:
    write_report(result, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "category &lt;i&gt;" in html
    assert "category <i>" not in html
    assert "19 of 20 judgments" in html


def test_page_shows_judgments_as_escaped_text(make: Callable[..., Result], tmp_path: Path) -> None:
    write_report(replace(make(), benchmarks={"mt_bench": {**BENCHMARK, "shown": JUDGMENTS}}), tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "4 of the judgments" in html
    for verdict in ("7 of 10", "refused", "worse", "better at 62.5%"):
        assert f'<span class="value">{verdict}</span>' in html
    assert html.count("the other answer, shown first") == 1
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(2)") == 3


def test_print_result_omits_categories(result: Result, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    print_result(result, tmp_path)
    out = capsys.readouterr().out
    assert "6.000 [5.750, 6.250]" in out
    assert "category" not in out


def test_radar_of_two_categories_is_none() -> None:
    assert radar(LINES) is not None
    assert radar([item for item in LINES if not item["what"].endswith("c")]) is None


# --- published figures


def with_published(make: Callable[..., Result]) -> Result:
    def entry(system: str, negatives: int | None, what: str, figure: float, measured: Any) -> dict[str, Any]:
        row = {"system": system, "negatives": negatives, "benchmark": "reward", "what": what, "figure": figure}
        kind = "share" if measured else None
        return {"published": {**row, "source": "a <b>paper</b>", "page": 7}, "kind": kind, "measured": measured}

    value = {"estimate": 0.5, "low": 0.4, "high": 0.625, "confidence": 0.95, "n": 9, "clusters": 9}
    figures = [entry("SFT", None, "win rate over target", 12.5, value), entry("Self-Contrast", 4, "mean", 7.25, None)]
    return replace(make(), published=figures)


def test_published_lists_published_figures_with_measured_ones(make: Callable[..., Result]) -> None:
    assert published(with_published(make)) == [
        ["SFT", "reward: win rate over target", "a <b>paper</b>, p. 7", "12.5%", "50.0% [40.0, 62.5]"],
        ["Self-Contrast, K = 4", "reward: mean", "a <b>paper</b>, p. 7", "7.25", "–"],
    ]


def test_published_figures_are_on_the_page_and_in_the_terminal(
    make: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(with_published(make), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Published and measured" in page
    assert "a &lt;b&gt;paper&lt;/b&gt;, p. 7" in page
    print_result(with_published(make), tmp_path)
    assert "12.5%" in capsys.readouterr().out
    write_report(make(), tmp_path)
    assert "Published and measured" not in (tmp_path / "report.html").read_text()
