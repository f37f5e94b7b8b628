"""Test the score against KL on a run's page and in a sweep's report, and methods at equal KL."""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hand_written import interval
from selfcontrast.report.against_kl import figure, rows, sentence
from selfcontrast.report.page import write_report
from selfcontrast.report.sweep import read_sweep
from selfcontrast.report.sweep_kl import OTHER_PROMPTS, OVER_PROMPTS, OVER_SEEDS, STRAIGHT, equal_kl
from selfcontrast.report.sweep_kl import figure as figure_of_sweep
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import print_sweep
from selfcontrast.report.terminal import print_result
from selfcontrast.report.text import NO_BREAK_SPACE
from selfcontrast.results import Result

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]
EVALUATION = {"evaluation": {"confidence": 0.95, "n_bootstrap": 200, "seed": 7}}
IDS = ["a", "b", "c", "d"]
SPREAD = (-0.1, -0.05, 0.05, 0.1)  # deviations of the prompts from their mean


def curve(kls: Sequence[float], scores: Sequence[float], ids: Sequence[str] = IDS) -> Any:
    """Return a curve of SFT, checkpoints and the policy. Entropy falls by 2 nats per point."""
    names = ["SFT", *(f"Self-Contrast {i}/{len(kls) - 1}" for i in range(1, len(kls) - 1)), "Self-Contrast"]
    points = [
        {
            "system": name,
            "step": 8 * i,
            "checkpoint": 0 < i < len(kls) - 1,
            "score": interval(score, 0.05),
            "kl": interval(kl, 0.1 * kl),
            "kl_k3": interval(kl, 0.1 * kl),
            "entropy": interval(20.0 - 2 * i, 1.0),
            "entropy_per_token": interval(1.0 - 0.1 * i, 0.05),
            "tokens": 19.5,
            "by_prompt": {"score": [score + s for s in SPREAD], "kl": [kl * (1 + s) for s in SPREAD]},
        }
        for i, (name, kl, score) in enumerate(zip(names, kls, scores, strict=True))
    ]
    return {"measure": "score", "decoding": "T=1", "ids": list(ids), "points": points}


@pytest.fixture
def make_with_kl(make: Make) -> Callable[..., Result]:
    def build(kls: Sequence[float], scores: Sequence[float], ids: Sequence[str] = IDS, **more: Any) -> Result:
        return replace(make(**more, config=EVALUATION), against_kl=curve(kls, scores, ids))

    return build


def varied(result: Result, value: str) -> Result:
    """Return the result with another setting, which makes it a separate variant."""
    return replace(result, config={**result.config, "sft": {"x": value}})


def test_report_of_a_run_shows_kl_and_entropy(
    make_with_kl: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # names wrap in a narrower terminal
    result = make_with_kl([0, 1.5, 4.25], [0.6, 0.75, 0.7])
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text().replace(NO_BREAK_SPACE, " ")
    print_result(result, tmp_path)
    for text in (page, capsys.readouterr().out):
        assert "4.250 [3.825, 4.675]" in text
        assert "16.0 [15.0, 17.0]" in text
        assert "Self-Contrast 1/2" in text
    assert "Better, sharper, or farther?" in page
    assert "KL(policy || SFT), nats per response" in page
    assert result.against_kl is not None
    assert sentence(result.against_kl) == (
        "The KL of Self-Contrast from SFT is 4.25 nats per response. Its entropy is 16.00 nats per response, lower "
        "than SFT's 20.00."
    )
    assert rows(result.against_kl)[0][:4] == ["SFT", "0", "0.600 [0.550, 0.650]", "0.000"]


def test_print_result_with_large_entropy_keeps_names_whole(
    make_with_kl: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = make_with_kl([0, 0.745], [0.05, 0.02])
    assert result.against_kl is not None
    for point in result.against_kl["points"]:
        point["entropy"] = interval(270.183, 41.0)
    print_result(result, tmp_path)
    assert any(line.startswith("Self-Contrast") and "270.2" in line for line in capsys.readouterr().out.splitlines())


def test_report_without_kl_has_no_kl_figure(make: Make, tmp_path: Path) -> None:
    """Results lack KL if they come from an earlier release, or if no decoding samples from the policy itself."""
    write_report(make(), tmp_path)
    assert "farther?" not in (tmp_path / "report.html").read_text()
    assert figure(make()) is None


def test_figure_of_the_sft_model_alone_is_none(make_with_kl: Make) -> None:
    sft_only = replace(make_with_kl([0, 1], [0.6, 0.7]), against_kl=None)
    sft_only = replace(
        sft_only, against_kl={**curve([0, 1], [0.6, 0.7]), "points": curve([0, 1], [0.6, 0.7])["points"][:1]}
    )
    assert sft_only.against_kl is not None
    assert figure(sft_only) is None
    assert sentence(sft_only.against_kl) == ""
    assert len(rows(sft_only.against_kl)) == 1


def test_equal_kl_compares_methods_at_the_smallest_final_kl(
    make_with_kl: Make, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At KL 2, the first method ends with 0.7. The second is halfway between (1, 0.6) and (3, 0.9), at 0.75."""
    write(tmp_path / "0", make_with_kl([0, 1, 2], [0.5, 0.6, 0.7], k=1))
    write(tmp_path / "1", make_with_kl([0, 1, 3], [0.5, 0.6, 0.9], k=2))
    sweep = read_sweep([tmp_path])
    table = equal_kl(sweep)
    assert table is not None
    assert table.heads == ["method", "final KL", "score at KL 2.00", "difference"]
    assert [row[:2] for row in table.rows] == [["K=1", "2.00"], ["K=2", "3.00"]]
    assert table.rows[0][2].startswith("0.700 [0.6")
    assert table.rows[1][2].startswith("0.750 [0.6")
    assert re.fullmatch(r"\+0\.050 \[\+0\.0\d\d, \+0\.0\d\d\]", table.rows[1][3])  # prompts' levels cancel in pairs
    assert table.notes == [OVER_PROMPTS, "Differences are from K=1."]
    write_sweep(sweep)
    print_sweep(sweep)
    page = (tmp_path / "report.html").read_text()
    for text in (page, (tmp_path / "results.md").read_text(), capsys.readouterr().out):
        assert "score at KL 2.00" in text
        assert table.rows[1][3] in text.replace("\\", "").replace(NO_BREAK_SPACE, " ")
    assert "Score against KL" in page
    frame = pd.read_csv(tmp_path / "results.csv")
    assert frame["kl"].tolist() == [2, 3]
    assert frame["entropy"].tolist() == [16, 16]
    assert frame["sft_entropy"].tolist() == [20, 20]
    assert '<th class="n">KL</th>' in page
    assert '<th class="n">entropy</th>' in page


def test_equal_kl_of_several_seeds_has_intervals_over_seeds(make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    """The smallest final KL is 1. At KL 1, K=1 has 0.6 and 0.7, and K=2 has 0.65 and 0.75 by interpolation."""
    for seed, shift in ((1, 0.0), (2, 0.1)):
        write(tmp_path / f"a{seed}", make_with_kl([0, 1], [0.5, 0.6 + shift], k=1, seed=seed))
        write(tmp_path / f"b{seed}", make_with_kl([0, 2], [0.5, 0.8 + 2 * shift], k=2, seed=seed))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert table.rows[0][2].startswith("0.650 [")
    assert table.rows[1][3] == "+0.050 [–]"  # the difference is equal for both seeds
    assert table.notes == [OVER_SEEDS, "Differences are from K=1.", STRAIGHT]


def test_equal_kl_on_different_prompts_has_no_intervals(make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", make_with_kl([0, 2], [0.5, 0.7], k=1))
    write(tmp_path / "1", make_with_kl([0, 4], [0.5, 0.9], ["w", "x", "y", "z"], k=2))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert [row[2:] for row in table.rows] == [["0.700", "–"], ["0.700", "–"]]
    assert table.notes == [OTHER_PROMPTS, STRAIGHT]


def test_equal_kl_from_different_sft_models_has_no_difference(make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    """KL is measured from the fine-tuned model, so KLs from different models cannot be compared."""
    for name, sft in (("a", 0.6), ("b", 0.5)):
        write(tmp_path / name, varied(make_with_kl([0, 2], [sft, 0.7], sft=sft, k=1), name))
    write(tmp_path / "c", varied(make_with_kl([0, 2], [0.6, 0.8], k=1), "c"))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert [row[3][:6] for row in table.rows] == ["–", "–", "+0.100"]
    assert table.notes == [
        OVER_PROMPTS,
        "Differences are from sft.x=a (K=1).",
        "No difference from sft.x=a (K=1) for methods that begin with another fine-tuned model, from which their KL is "
        "measured: sft.x=b (K=1).",
        STRAIGHT,
    ]


def test_equal_kl_with_one_sft_model_per_seed_has_a_difference(
    make_with_kl: Make, write: Write, tmp_path: Path
) -> None:
    for seed, sft in ((1, 0.5), (2, 0.6)):
        for k in (1, 2):
            result = make_with_kl([0, 2], [sft, sft + 0.1 * k], sft=sft, k=k, seed=seed)
            write(tmp_path / f"{k}-{seed}", result)
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert table.rows[1][3].startswith("+0.100")


@pytest.mark.parametrize("seeds", [[1], [1, 2]])
def test_equal_kl_at_different_decodings_has_no_difference(
    seeds: list[int], make_with_kl: Make, write: Write, tmp_path: Path
) -> None:
    for seed in seeds:
        write(tmp_path / f"a{seed}", make_with_kl([0, 2], [0.5, 0.7], k=1, seed=seed))
        other = make_with_kl([0, 2], [0.5, 0.8], k=2, seed=seed)
        assert other.against_kl is not None
        write(tmp_path / f"b{seed}", replace(other, against_kl={**other.against_kl, "decoding": "warm"}))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert table.rows[1][3] == "–"
    assert "No difference from K=1 for methods that were measured at another decoding: K=2." in table.notes


def test_equal_kl_over_seeds_on_different_prompts_has_no_difference(
    make_with_kl: Make, write: Write, tmp_path: Path
) -> None:
    for seed in (1, 2):
        write(tmp_path / f"a{seed}", make_with_kl([0, 2], [0.5, 0.7], k=1, seed=seed))
        write(tmp_path / f"b{seed}", make_with_kl([0, 2], [0.5, 0.8], ["w", "x", "y", "z"], k=2, seed=seed))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert table.rows[1][3] == "–"
    assert "No difference from K=1 for methods that were measured on other prompts: K=2." in table.notes


def test_equal_kl_with_missing_seeds_compares_shared_seeds(make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    """Seed 2 is better by 0.1, and each K above 1 by 0.05. The difference is 0.05, whichever seed a K lacks."""
    for k, seeds in ((1, (1, 2)), (2, (1,)), (4, (2,)), (8, (3,))):
        for seed in seeds:
            score = 0.6 + 0.1 * (seed == 2) + 0.05 * (k > 1)
            write(tmp_path / f"{k}-{seed}", make_with_kl([0, 1], [0.5, score], k=k, seed=seed))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert table.heads[3:] == ["seeds", "difference", "on seeds"]
    assert [row[3] for row in table.rows] == ["1, 2", "1", "2", "3"]
    assert [row[4:] for row in table.rows] == [["–", "–"], ["+0.050", "1"], ["+0.050", "2"], ["–", "–"]]
    assert "No difference from K=1 for methods that have no seed in common with it: K=8." in table.notes


def test_equal_kl_of_single_jobs_with_different_seeds_has_no_difference(
    make_with_kl: Make, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in (1, 2):
        write(tmp_path / str(k), make_with_kl([0, 1], [0.5, 0.6], k=k, seed=k))
    sweep = read_sweep([tmp_path])
    table = equal_kl(sweep)
    assert table is not None
    assert table.rows[1][table.heads.index("difference")] == "–"
    write_sweep(sweep)
    print_sweep(sweep)
    output = capsys.readouterr().out + (tmp_path / "report.html").read_text()
    for note in ("Means over seeds", "Small points are seeds"):  # each point has one seed
        assert note not in output


def test_equal_kl_names_results_without_kl(make: Make, make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    """A result of older code has no KL."""
    for k in (1, 2):
        write(tmp_path / str(k), make_with_kl([0, 1], [0.5, 0.6], k=k))
    write(tmp_path / "old", make(k=4, config=EVALUATION))
    table = equal_kl(read_sweep([tmp_path]))
    assert table is not None
    assert [row[0] for row in table.rows] == ["K=1", "K=2"]
    assert "Left out, since no KL is known: K=4." in table.notes


@pytest.mark.parametrize("kls", [[0, -0.01], [0, 0]])
def test_equal_kl_leaves_out_a_policy_at_zero_kl_by_name(
    kls: list[float], make_with_kl: Make, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k in (1, 2):
        write(tmp_path / str(k), make_with_kl([0, k], [0.5, 0.6], k=k))
    write(tmp_path / "unmoved", make_with_kl(kls, [0.5, 0.5], k=4))
    sweep = read_sweep([tmp_path])
    table, note = equal_kl(sweep), "Left out, since a policy has not moved away from SFT: K=4 (KL "
    assert table is not None
    assert [row[0] for row in table.rows] == ["K=1", "K=2"]
    assert note in " ".join(table.notes)
    print_sweep(sweep)
    assert note in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(tmp_path / "2")
    alone = read_sweep([tmp_path])
    table = equal_kl(alone)
    assert table is not None
    assert (table.rows, table.notes[0]) == ([], "Fewer than two methods can be compared at equal KL.")
    assert note in table.notes[1]
    write_sweep(alone)
    assert note in (tmp_path / "report.html").read_text().replace(NO_BREAK_SPACE, " ")
    print_sweep(alone)


def test_figure_of_many_methods_names_the_best_ten(make_with_kl: Make, write: Write, tmp_path: Path) -> None:
    """Each of twelve methods is better than the one before. The legend names the ten best and counts the others."""
    for i in range(12):
        write(
            tmp_path / str(i),
            varied(make_with_kl([0, 2], [0.5, 0.6 + i / 100], policy=0.6 + i / 100, k=1), f"{i:02}"),
        )
    canvas = figure_of_sweep(read_sweep([tmp_path]))
    assert canvas is not None
    names = [entry.get_text() for entry in canvas.legends[0].get_texts()]
    assert names == ["2 more", *(f"sft.x={i:02} (K=1)" for i in range(11, 1, -1))]
