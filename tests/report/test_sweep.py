import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from selfcontrast.errors import FAILED, UserError
from selfcontrast.report.hook import SweepReport
from selfcontrast.report.sweep import Point, best, read_sweep, variants
from selfcontrast.report.sweep_figure import MOST_RANKED, figure, ranked
from selfcontrast.report.sweep_numbers import by_point, numbers
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.report.sweep_terminal import plot, print_sweep
from selfcontrast.report.sweep_words import headline, sentence, unequal_seeds
from selfcontrast.report.text import NO_BREAK_SPACE
from selfcontrast.results import Result
from test_config import composed

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def failed(folder: Path, *overrides: str) -> None:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))


@pytest.fixture
def folder(make: Make, write: Write, tmp_path: Path) -> Path:
    """Jobs 0, 1, 2 and 10. Job 1 failed. The jobs' order is not that of their K."""
    write(tmp_path / "0", make(policy=0.7, k=4))
    write(tmp_path / "2", make(policy=0.65, half=0.1, p=0.4, k=1))
    write(tmp_path / "10", make(policy=0.5, k=16))
    for job, k in (("0", 4), ("1", 99), ("2", 1), ("10", 16)):
        failed(tmp_path / job, "trainer.epochs=1", f"negatives={k}")
    return tmp_path


def test_read_sweep_sorts_jobs_by_k_and_names_missing_ones(folder: Path) -> None:
    sweep = read_sweep([folder])
    assert [(job.folder, job.result.negatives) for job in sweep.jobs] == [("2", 1), ("0", 4), ("10", 16)]
    assert [(job.folder, job.overrides) for job in sweep.missing] == [("1", "negatives=99")]
    assert [job.outcome for job in sweep.jobs] == ["level", "better", "worse"]


def test_error_of_a_failed_job_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "1" / FAILED).write_text("negatives=99 is <b>too many</b>")
    assert [job.why for job in read_sweep([folder]).missing] == ["negatives=99 is <b>too many</b>"]
    print_sweep(read_sweep([folder]))
    assert "negatives=99 is <b>too many</b>" in capsys.readouterr().out
    write_sweep(read_sweep([folder]))
    page = (folder / "report.html").read_text()
    assert "negatives=99 is &lt;b&gt;too many&lt;/b&gt;" in page


def test_truncated_result_counts_as_missing(folder: Path) -> None:
    (folder / "0" / "result.json").write_text('{"name": "half')
    assert [job.folder for job in read_sweep([folder]).missing] == ["0", "1"]


def test_write_sweep_writes_all_files(folder: Path) -> None:
    write_sweep(read_sweep([folder]))
    table = pd.read_csv(folder / "results.csv")
    assert table["negatives"].tolist() == [1, 4, 16]
    assert table["score"].tolist() == pytest.approx([0.65, 0.7, 0.5])
    assert table["difference_low"].tolist() == pytest.approx([-0.05, 0.06, -0.14])
    # Holm: 0.002 times 3; then 0.002 times 2, raised to the value before; then 0.4 times 1.
    assert table["p_value"].tolist() == pytest.approx([0.4, 0.002, 0.002])
    assert table["p_holm"].tolist() == pytest.approx([0.4, 0.006, 0.006])
    assert table["negatives_per_prompt"].tolist() == [0.5, 3.5, 15.5]
    # `seconds` counts all stages of a job; `seconds_own` only those that this job computed.
    jobs = read_sweep([folder]).jobs
    assert table["seconds"].tolist() == [sum(stage["seconds"] for stage in job.result.stages) for job in jobs]
    assert (table["seconds_own"] <= table["seconds"]).all()
    assert (folder / "results.md").read_text().count("\n") == 2 + 3
    assert (folder / "results.tex").read_text().count("&") == 4 * 12  # 13 columns
    page = (folder / "report.html").read_text().replace(NO_BREAK_SPACE, " ")
    for expected in ("0.700 [0.650, 0.750]", "+0.100 [+0.060, +0.140]", "negatives=99", "1 min 01 s", "15.5"):
        assert expected in page, expected
    assert "://" not in page
    assert (folder / "figure.png").stat().st_size > 0
    assert "K: negatives per prompt" in (folder / "figure.svg").read_text()


def test_sentence_names_gains_losses_and_the_best(folder: Path) -> None:
    sweep = read_sweep([folder])
    assert headline(sweep) == "Score: 0.650 at K=1, 0.500 at K=16; SFT 0.600"
    assert "Clear gain over SFT at K=4." in sentence(sweep)
    assert "Clear loss against SFT at K=16." in sentence(sweep)
    assert "No significant difference from SFT at K=1." in sentence(sweep)
    assert "Highest: K=4 with 0.700" in sentence(sweep)


def test_gain_is_not_clear_after_holm_correction(make: Make, write: Write, tmp_path: Path) -> None:
    """p = 0.02 is below 0.05 alone, and 0.06 among three jobs."""
    for job, (policy, p) in enumerate(((0.7, 0.02), (0.61, 0.8), (0.61, 0.9))):
        write(tmp_path / str(job), make(policy=policy, p=p, k=2**job))
    alone, *_ = sweep = read_sweep([tmp_path]).jobs
    assert [job.p_holm for job in sweep] == pytest.approx([0.06, 1, 1])
    assert alone.outcome == "level"
    assert "Clear" not in sentence(read_sweep([tmp_path]))


def test_holm_ignores_jobs_without_a_p_value(make: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", make(p=0.02, k=1))
    write(tmp_path / "1", make(p=float("nan"), k=2))
    first, second = read_sweep([tmp_path]).jobs
    assert first.p_holm == 0.02
    assert math.isnan(second.p_holm)
    assert second.outcome == "level"


def test_print_sweep_fits_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    print_sweep(read_sweep([folder]))
    out = capsys.readouterr().out
    assert "4  0.700 [0.650, 0.750] +0.100 [+0.060, +0.140] 55.0% 0.002 0.006  3.5" in out
    assert "no result: job 1 (negatives=99)" in out
    assert "figure   figure.png" in out
    assert max(map(len, out.splitlines())) <= 80


def test_print_sweep_without_results_names_missing_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed(tmp_path / "0", "negatives=99")
    print_sweep(read_sweep([tmp_path]))
    assert capsys.readouterr().out.split() == ["no", "result:", "job", "0", "(negatives=99)"]


def test_numbers_of_several_seeds_are_means_with_t_intervals(make: Make, write: Write, tmp_path: Path) -> None:
    for seed, policy in ((1, 0.7), (2, 0.8), (3, 0.6)):
        write(tmp_path / str(seed), make(policy=policy, seed=seed))
    sweep = read_sweep([tmp_path])
    [point] = sweep.of("")
    assert (point.k, len(point.jobs)) == (4, 3)
    # Standard deviation 0.1, so its error 0.1/sqrt(3) = 0.05774, times t of 2 degrees, 4.3027: 0.2484.
    assert numbers(point)[:2] == ["0.700 [0.452, 0.948]", "+0.100 [-0.148, +0.348]"]
    # t = 0.1 / 0.05774 = 1.7321; with 2 degrees P(|T| > t) = 1 - t / sqrt(2 + t^2) = 1 - 1.7321 / sqrt(5).
    assert point.p_value == pytest.approx(1 - math.sqrt(3 / 5))
    assert "Clear gain over SFT at K=4 (2 of 3 seeds)." in sentence(sweep)
    assert "Highest: K=4 with 0.700 [0.452, 0.948]" in sentence(sweep)
    write_sweep(sweep)
    assert "By K" in (tmp_path / "report.html").read_text()
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [line.count("|") for line in lines] == [12] * 3 + [0] + [14] * 5  # over K, then every job


def test_numbers_show_the_cost_of_a_point(make: Make, write: Write, tmp_path: Path) -> None:
    """Each of two jobs has sft 225 s, cached or not, filter 3 s and align 61 s. They read 1.2 M and 2.4 M tokens."""
    write(tmp_path / "1", make(seed=1, tokens=1_200_000))
    write(tmp_path / "2", make(seed=2, tokens=2_400_000))
    sweep = read_sweep([tmp_path])
    assert numbers(sweep.points[0])[-3:] == ["1 min 01 s", "1.80 M", "4 min 49 s"]
    write_sweep(sweep)
    table = pd.read_csv(tmp_path / "results.csv")
    assert table["align_tokens"].tolist() == [1_200_000, 2_400_000]
    assert table["sampled_tokens"].isna().all()  # candidates made elsewhere
    assert table["seconds_own"].tolist() == [64, 64]


def test_headline_of_variants_names_the_best_beside_its_own_sft(make: Make, write: Write, tmp_path: Path) -> None:
    """SFT was once averaged over data with and without noise: no job had it."""
    for job, (noise, sft) in enumerate([(0.0, 0.534), (0.3, 0.84)]):
        for k in (1, 4):
            config = {"data": {"noise": noise}}
            write(tmp_path / f"{job}-{k}", make(sft=sft, policy=sft + k / 100, control=sft + 0.05, k=k, config=config))
    sweep = read_sweep([tmp_path])
    # Four p-values of 0.002: Holm's correction makes them 0.008.
    assert headline(sweep) == (
        "Best score of 4: 0.880 with data.noise=0.3 (K=4); SFT 0.840; p = 0.008, corrected for 4 comparisons (Holm)"
    )
    assert "SFT's T=0.7 decoding alone gives 0.890" in sentence(sweep)
    levels = {str(line.get_label()): line.get_ydata()[0] for line in figure(sweep).axes[0].lines}
    assert levels["SFT, T=1 (data.noise=0.3)"] == pytest.approx(0.84)
    assert levels["SFT, T=0.7 (data.noise=0.0)"] == pytest.approx(0.584)
    assert [line.strip() for line in plot(sweep) if "SFT" in line] == ["SFT 0.534", "SFT 0.840"]


def test_headline_of_variants_compares_on_the_seeds_of_all(make: Make, write: Write, tmp_path: Path) -> None:
    """Only "a" has seed 2, where every score is higher by 0.2: "b" is the best on seed 1."""
    for method, seed, score in (("a", 1, 0.6), ("a", 2, 0.8), ("b", 1, 0.65)):
        write(tmp_path / f"{method}{seed}", make(policy=score, sft=0.55, seed=seed, config={"label": method}))
    sweep = read_sweep([tmp_path])
    assert headline(sweep).startswith("Best score of 2: 0.650 with b (K=4); SFT 0.550 (seed 1); p = ")
    assert "a (K=4)" not in unequal_seeds(sweep)
    assert "b (K=4) lacks seed 2" in unequal_seeds(sweep)


def test_headline_of_variants_without_a_common_seed_names_no_best(make: Make, write: Write, tmp_path: Path) -> None:
    for method, seed in (("a", 1), ("b", 2)):
        write(tmp_path / method, make(seed=seed, config={"label": method}))
    assert "no seed is common to all" in headline(read_sweep([tmp_path]))


def test_headline_of_variants_without_p_values_claims_no_correction(make: Make, write: Write, tmp_path: Path) -> None:
    for method in ("a", "b"):
        write(tmp_path / method, make(p=math.nan, config={"label": method}))
    assert "Holm" not in headline(read_sweep([tmp_path]))


def test_sentence_counts_many_points_without_a_difference(make: Make, write: Write, tmp_path: Path) -> None:
    for job in range(8):
        write(tmp_path / str(job), make(policy=0.61, p=0.9, config={"label": f"m{job}"}))
    words = sentence(read_sweep([tmp_path]))
    assert "No significant difference from SFT at 8 of 8 points." in words
    assert "m0" not in words.partition("Highest")[0]


def test_baselines_with_equal_scores_differ_by_artifact_key(make: Make, write: Write, tmp_path: Path) -> None:
    """A model of other data may happen to score the same, and one model has one key in all jobs."""
    for noise, key in ((0.0, "aa"), (0.3, "bb")):
        for k in (1, 4):
            result = make(k=k, config={"data": {"noise": noise}})
            stages = [{**stage, "key": key} if stage["name"] == "sft" else stage for stage in result.stages]
            write(tmp_path / f"{key}-{k}", replace(result, stages=stages))
    assert read_sweep([tmp_path]).baselines == [["data.noise=0.0"], ["data.noise=0.3"]]


def test_sharper_control_is_a_mean_over_seeds(make: Make, write: Write, tmp_path: Path) -> None:
    """0.65 with seed 1 and 0.85 with seed 2."""
    for seed, control in ((1, 0.65), (2, 0.85)):
        write(tmp_path / str(seed), make(seed=seed, control=control, policy=0.6 + seed / 100))
    sweep = read_sweep([tmp_path])
    assert "SFT's T=0.7 decoding alone gives 0.750 on average over its seeds." in sentence(sweep)
    lines = {str(line.get_label()): line.get_ydata()[0] for line in figure(sweep).axes[0].lines}
    assert lines["SFT, T=0.7"] == pytest.approx(0.75)


def test_points_with_unequal_seeds_are_compared_on_shared_seeds(make: Make, write: Write, tmp_path: Path) -> None:
    """The policy equals SFT everywhere. With K=16 alone having seed 2, whose SFT is better, 0.6 rose to 0.65."""
    for k, seed in ((1, 1), (16, 1), (16, 2)):
        level = {1: 0.6, 2: 0.7}[seed]
        write(tmp_path / f"{k}-{seed}", make(sft=level, policy=level, control=level, k=k, seed=seed, p=1.0))
    sweep = read_sweep([tmp_path])
    assert headline(sweep) == "Score: 0.600 at K=1, 0.600 at K=16; SFT 0.600 (seed 1)"
    assert "Points have different seeds (compared on seed 1, which all have): K=1 lacks seed 2." in sentence(sweep)
    assert best(sweep).seeds == [1]
    line = next(line for line in figure(sweep).axes[0].lines if line.get_label() == "Self-Contrast")
    assert list(line.get_ydata()) == pytest.approx([0.6, 0.6])
    heads, rows = by_point(sweep)
    assert [row[heads.index("seeds")] for row in rows] == ["1 (1)", "2"]
    write_sweep(sweep)
    assert "K=1 lacks seed 2" in (tmp_path / "report.html").read_text()


def test_points_without_a_common_seed_are_not_compared(make: Make, write: Write, tmp_path: Path) -> None:
    for k, seed in ((1, 1), (4, 2)):
        write(tmp_path / str(k), make(k=k, seed=seed, policy=0.6 + seed / 10))
    sweep = read_sweep([tmp_path])
    assert headline(sweep) == "Score: 0.700 at K=1 (seed 1), 0.800 at K=4 (seed 2): different seeds, so not compared"
    assert "no seed is common to all" in sentence(sweep)


def test_intervals_over_seeds_stay_in_the_range_of_scores(make: Make, write: Write, tmp_path: Path) -> None:
    """Mean 0.95, standard deviation 0.05, t of 2 degrees 4.3027: 0.95 + 0.124 would be above 1."""
    for seed, policy in ((1, 0.9), (2, 0.95), (3, 1.0)):
        write(tmp_path / str(seed), make(policy=policy, seed=seed))
    assert numbers(read_sweep([tmp_path]).points[0])[0] == "0.950 [0.826, 1.000]"


@pytest.mark.parametrize(
    ("n_bootstrap", "prompts", "overrides", "message"),
    [
        (
            200,
            384,
            ["negatives=1,2,4,8", "seed=1,2,3"],
            "of 12 jobs.*smallest p-value is 0.005.*evaluation.n_bootstrap",
        ),
        (4000, 384, ["negatives=1,2,4,8", "seed=1,2,3"], ""),
        (200, 384, ["negatives=1,2,4,8"], ""),  # 4 times 1/201 is 0.02
        (4000, 6, ["negatives=1,2"], "of 2 jobs.*smallest p-value is 0.031.*evaluation.prompts"),  # 2 / 2^6
        (200, 384, ["negatives=range(1,13)"], "of 12 jobs"),
        (100, None, ["negatives=1,2,4,8,16", "+experiment=miniature"], ""),  # 5 times 1/101 is below 0.05
    ],
)
def test_sweep_with_too_many_tests_warns_before_compute(
    n_bootstrap: int, prompts: int | None, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"n_bootstrap": n_bootstrap, "prompts": prompts, "confidence": 0.95}
    hydra = {"sweep": {"dir": "out"}, "overrides": {"task": overrides}}
    SweepReport().on_multirun_start(OmegaConf.create({"evaluation": evaluation, "hydra": hydra}))
    SweepReport.folder = None
    out = " ".join(capsys.readouterr().out.split())
    assert bool(message) == bool(out)
    assert re.search(message, out)


# --- any runs together


def test_read_sweep_merges_several_folders(make: Make, write: Write, tmp_path: Path) -> None:
    """Two sweeps over K with one seed each. A run in one of them is named again."""
    for sweep, seed in (("first", 1), ("second", 2)):
        for job, k in enumerate((1, 4)):
            write(tmp_path / sweep / str(job), make(k=k, seed=seed, policy=0.6 + k / 50 + seed / 100, p=0.01 * seed))
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "second" / "1"]
    sweep = read_sweep(folders, tmp_path / "both")
    assert [job.folder for job in sweep.jobs] == ["first/0", "second/0", "first/1", "second/1"]
    assert [(point.k, len(point.jobs)) for point in sweep.points] == [(1, 2), (4, 2)]
    # Holm over four jobs: 4 times 0.01 for both jobs of seed 1; then 2 times 0.02, raised to the value before.
    assert [job.p_holm for job in sweep.jobs] == pytest.approx([0.04] * 4)
    # Differences 0.03 and 0.04 of K=1: mean 7 times its error 0.005; of K=4 0.09 and 0.10, 19 times. Times 2 and 1.
    p_of_1, p_of_4 = (1 - 2 / math.pi * math.atan(t) for t in (7, 19))
    assert [point.p_holm for point in sweep.points] == pytest.approx([p_of_1, 2 * p_of_4], rel=1e-6)
    write_sweep(sweep)
    assert {"report.html", "figure.png", "results.csv", "results.md", "results.tex"} <= {
        file.name for file in (tmp_path / "both").iterdir()
    }
    assert f"--to {tmp_path / 'both'}" in (tmp_path / "both" / "report.html").read_text()


def test_read_sweep_drops_exact_repetitions(make: Make, write: Write, tmp_path: Path) -> None:
    config = {"engine": {"actors": 1}, "output": "a"}
    write(tmp_path / "a", make(config=config))
    write(tmp_path / "b", make(config={**config, "output": "b"}))
    write(tmp_path / "c", make(config=config, policy=0.75))  # another measurement
    assert [job.folder for job in read_sweep([tmp_path]).jobs] == ["a", "c"]


def test_read_sweep_skips_results_of_evaluate_py(make: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a", make())
    (tmp_path / "b" / ".hydra").mkdir(parents=True)
    (tmp_path / "b" / "result.json").write_text('{"model": "a folder", "comparison": {}}')
    sweep = read_sweep([tmp_path])
    assert ([job.folder for job in sweep.jobs], sweep.missing) == (["a"], [])


def test_read_sweep_with_different_measures_is_refused(make: Make, proxy: Result, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "a", make())
    write(tmp_path / "b", proxy)
    with pytest.raises(UserError, match=r"score \(a\), similarity \(b\)"):
        read_sweep([tmp_path])


def test_failed_job_is_missing_despite_an_older_result(folder: Path) -> None:
    (folder / "0" / FAILED).write_text("negatives=8: no")
    assert [job.folder for job in read_sweep([folder]).missing] == ["0", "1"]


def test_variants_are_named_by_differing_settings() -> None:
    def config(beta: float, k: int) -> dict[str, object]:
        return {"negatives": k, "seed": k, "output": str(k), "objective": {"beta": beta, "core": "ipo"}}

    names = variants({"0": config(0.1, 1), "1": config(0.5, 1), "2": config(0.5, 8)})
    assert names == {"0": "objective.beta=0.1", "1": "objective.beta=0.5", "2": "objective.beta=0.5"}
    assert set(variants({"0": config(0.1, 1), "1": config(0.1, 8)}).values()) == {""}


def test_variants_ignore_settings_that_follow_the_seed() -> None:
    def config(*overrides: str) -> Any:
        return OmegaConf.to_container(composed("+experiment=miniature", "output=out", *overrides), resolve=True)

    configs = {f"{k}-{seed}": config(f"negatives={k}", f"seed={seed}") for k in (1, 4) for seed in (1, 2)}
    assert set(variants(configs).values()) == {""}
    assert variants({**configs, "other": config("generator.seed=9")})["other"] == "generator.seed=9"


def test_variants_of_methods_omit_the_methods_own_settings() -> None:
    def config(method: str, core: str, beta: float) -> dict[str, object]:
        return {"negatives": 1, "seed": 1, "label": method, "objective": {"core": core, "beta": beta}}

    names = variants(
        {"0": config("SPIN", "a", 0.1), "1": config("DPO_std", "b", 0.1), "2": config("DPO_std", "b", 0.5)}
    )
    assert names == {"0": "SPIN", "1": "DPO_std, objective.beta=0.1", "2": "DPO_std, objective.beta=0.5"}


def test_job_without_a_policy_is_compared_with_nothing(make: Make, write: Write, tmp_path: Path) -> None:
    """Jobs that only fine-tune, with two seeds, have the fine-tuned model's row and no comparison."""
    for seed in (1, 2):
        whole = make(seed=seed, config={"label": "none"})
        rows = [row for row in whole.comparison["rows"] if row["system"] == "SFT"]
        stages = [stage for stage in whole.stages if stage["name"] == "sft"]
        alone = replace(
            whole, comparison={**whole.comparison, "rows": rows}, stages=stages, histories={}, similarities={}
        )
        write(tmp_path / f"alone{seed}", alone)
    write(tmp_path / "policy", make(config={"label": "Self-Contrast"}))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    print_sweep(sweep)
    by_name = {job.folder: job for job in sweep.jobs}
    first, second = by_name["alone1"], by_name["alone2"]
    assert numbers(Point([first], first.p_holm))[:5] == ["0.600 [0.550, 0.650]", "–", "–", "–", "–"]
    assert numbers(Point([first, second], math.nan))[:4] == ["0.600 [–]", "–", "–", "–"]  # nothing varies
    assert (by_name["alone1"].variant, by_name["alone1"].outcome) == ("none", "alone")
    assert by_name["policy"].p_holm == 0.002  # one test, not three
    assert pd.read_csv(tmp_path / "results.csv").set_index("job")["difference"].isna().to_dict() == {
        "alone1": True,
        "alone2": True,
        "policy": False,
    }


def test_figure_draws_a_variant_with_one_k_as_a_baseline(make: Make, write: Write, tmp_path: Path) -> None:
    for k in (1, 4):
        write(tmp_path / f"ours{k}", make(k=k, config={"label": "Self-Contrast"}))
    write(tmp_path / "other", make(policy=0.25, k=4, config={"label": "DPO_std"}))
    (axes,) = figure(read_sweep([tmp_path])).axes
    drawn = {str(line.get_label()): list(line.get_xdata()) for line in axes.lines}
    assert drawn["Self-Contrast"] == [1, 4]
    assert drawn["DPO_std"] == [4]
    assert any(list(line.get_ydata()) == [0.25, 0.25] and list(line.get_xdata()) == [0, 1] for line in axes.lines)


def test_figure_names_variants_in_its_legend(make: Make, write: Write, tmp_path: Path) -> None:
    for job, beta in enumerate((0.1, 0.5)):
        write(tmp_path / str(job), make(config={"objective": {"beta": beta}}))
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    svg = (tmp_path / "figure.svg").read_text()
    assert "Self-Contrast, objective.beta=0.1" in svg
    assert "Self-Contrast, objective.beta=0.5" in svg
    assert "objective.beta=0.5 (K=4)" in sentence(sweep)


def test_figure_of_many_variants_ranks_them_by_score(make: Make, write: Write, tmp_path: Path) -> None:
    """Job 7 has 0.7, job i 0.6 - i / 100. Each job has a row, the best first, next to SFT's score."""
    for job in range(12):
        score = 0.7 if job == 7 else 0.6 - job / 100
        write(tmp_path / str(job), make(policy=score, config={"objective": {"beta": job / 10}}))
    sweep = read_sweep([tmp_path])
    (axes,) = figure(sweep).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    order = [7, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert names == [f"objective.beta={job / 10} (K=4)" for job in order]
    points = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
    assert [points[row] for row in range(3)] == pytest.approx([0.7, 0.6, 0.59])
    ticks = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    assert ticks == pytest.approx([0.6] * 12)
    write_sweep(sweep)
    assert "Score of each variant" in (tmp_path / "report.html").read_text()


def test_figure_of_too_many_variants_shows_the_best(make: Make, write: Write, tmp_path: Path) -> None:
    for job in range(MOST_RANKED + 2):
        write(tmp_path / str(job), make(policy=0.3 + job / 100, config={"objective": {"beta": job}}))
    sweep = read_sweep([tmp_path])
    assert [point.variant for point in ranked(sweep)][:2] == ["objective.beta=31", "objective.beta=30"]
    write_sweep(sweep)
    assert f"the best {MOST_RANKED} of {MOST_RANKED + 2}" in (tmp_path / "report.html").read_text()


def test_print_sweep_of_methods_fits_80_columns(
    make: Make, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names wrap, and numbers are whole."""
    for job, method in enumerate(("a-method-with-a-long-name", "least_consistent", "random")):
        for seed in (1, 2, 3)[: job + 1]:
            write(tmp_path / f"{job}-{seed}", make(policy=0.6 + seed / 50, seed=seed, config={"label": method}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    print_sweep(read_sweep([tmp_path]))
    out = capsys.readouterr().out
    assert "0.620 [0.570, 0.670] +0.020 [-0.020, +0.060]" in out
    assert "2 (1, 2)" in out
    assert max(map(len, out.splitlines())) <= 80


def test_plot_puts_estimates_on_one_scale(folder: Path) -> None:
    """Means 0.65, 0.7, 0.5 and SFT's 0.6 between the outermost ends, 0.45 and 0.75, in 60 characters."""
    lines = plot(read_sweep([folder]))
    assert [line.index("●") - 8 for line in lines[:3]] == [39, 49, 10]  # 59 * (x - 0.45) / 0.3, rounded
    assert {line.find("│") - 8 for line in lines if "│" in line} <= {29, 30}


def test_plot_of_methods_names_each_above_its_lines(make: Make, write: Write, tmp_path: Path) -> None:
    """Lines of different methods look alike, so the method is named above its lines."""
    for method in ("random", "rft"):
        for k in (1, 4):
            write(tmp_path / f"{method}{k}", make(k=k, config={"label": method}))
    lines = plot(read_sweep([tmp_path]))
    assert [line.split()[0] for line in lines[:6]] == ["random", "K=1", "K=4", "rft", "K=1", "K=4"]


def test_sharper_control_of_one_seed_is_no_mean(make: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", make(control=0.65))
    assert "SFT's T=0.7 decoding alone gives 0.650." in sentence(read_sweep([tmp_path]))


def test_sweep_with_unknown_intervals_is_reported(unbounded: Result, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", unbounded)
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    assert math.isnan(pd.read_csv(tmp_path / "results.csv")["score_low"].item())
    assert plot(sweep)


def test_proxy_is_labelled_everywhere(
    proxy: Result, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "0", proxy)
    sweep = read_sweep([tmp_path])
    write_sweep(sweep)
    assert "a proxy, not quality" in (tmp_path / "figure.svg").read_text()
    assert "similarity (proxy)" in (tmp_path / "report.html").read_text()
    print_sweep(sweep)
    assert "similarity (proxy) against K" in capsys.readouterr().out
