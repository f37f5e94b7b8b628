"""Test the page of a single model that evaluate.py measured."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from selfcontrast.report.__main__ import main
from selfcontrast.results import RESULT, Evaluated, Result


@pytest.fixture
def evaluated(make: Callable[..., Result]) -> Evaluated:
    """Return the result that evaluate.py gives for a run's policy."""
    result = make()
    alone = [
        {k: v for k, v in row.items() if k in ("decoding", "temperature", "mean", "nll", "tokens")}
        for row in result.comparison["rows"]
        if row["system"] != "SFT"
    ]
    rows = [{"system": "model", **row} for row in alone]
    contamination = {**result.comparison["contamination"], "without": rows[:1]}
    return Evaluated(
        model="models/<b>mine</b>",
        comparison={**result.comparison, "rows": rows, "categories": [], "contamination": contamination},
        lm_eval={"target_choice": {"acc": 0.911, "fewshot": 2.0}},
        benchmarks={},
        samples=[{**sample, "answers": {"model": sample["answers"]["SFT"]}} for sample in result.samples],
        stages=result.stages,
        config=result.config,
        provenance=result.provenance,
    )


def page(result: Evaluated, folder: Path) -> str:
    """Write the page with the command that the page itself names, and return it."""
    (folder / RESULT).write_text(json.dumps(asdict(result)))
    main([str(folder)])
    return (folder / "report.html").read_text()


def test_page_shows_score_lm_eval_contamination_and_figure(evaluated: Evaluated, tmp_path: Path) -> None:
    html = page(evaluated, tmp_path)
    assert "<h1>A score of 0.700 [0.650, 0.750] at T=1</h1>" in html
    assert "0.911" in html
    assert "Contamination: 1 of 20 test prompts (5.0%) resembles a training prompt; without them model 0.700" in html
    assert "<svg" in html


def test_page_escapes_texts_of_models_and_data(evaluated: Evaluated, tmp_path: Path) -> None:
    html = page(evaluated, tmp_path)
    for hostile in ("<script>", "<i>maths", "<b>mine"):
        assert hostile not in html
    assert "&lt;script&gt;alert(1)" in html


def test_page_labels_a_proxy(evaluated: Evaluated, tmp_path: Path) -> None:
    samples = [{**s, "answers": {}} for s in evaluated.samples]
    proxy = replace(evaluated, comparison={**evaluated.comparison, "measure": "similarity"}, samples=samples)
    html = page(proxy, tmp_path)
    assert "A similarity (proxy) of" in html
    assert "a proxy, not quality" in html
