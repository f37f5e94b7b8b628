"""Test reading the jobs of sweeps: which count, which are missing, how variants are named, and corrected p-values."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from selfcontrast.errors import FAILED, UserError
from selfcontrast.report.sweep import read_sweep, variants
from selfcontrast.report.sweep_page import write_sweep
from selfcontrast.results import Result
from test_config import composed

Make = Callable[..., Result]
Write = Callable[[Path, Result], None]


def test_read_sweep_sorts_jobs_by_k_and_names_missing_ones(sweep_folder: Path) -> None:
    sweep = read_sweep([sweep_folder])
    assert [(job.folder, job.result.negatives) for job in sweep.jobs] == [("2", 1), ("0", 4), ("10", 16)]
    assert [(job.folder, job.overrides) for job in sweep.missing] == [("1", "negatives=99")]
    assert [point.outcome for point in sweep.points] == ["level", "better", "worse"]


def test_truncated_result_counts_as_missing(sweep_folder: Path) -> None:
    (sweep_folder / "0" / "result.json").write_text('{"name": "half')
    assert [job.folder for job in read_sweep([sweep_folder]).missing] == ["0", "1"]


def test_failed_job_is_missing_despite_an_older_result(sweep_folder: Path) -> None:
    (sweep_folder / "0" / FAILED).write_text("negatives=8: no")
    assert [job.folder for job in read_sweep([sweep_folder]).missing] == ["0", "1"]


def test_read_sweep_merges_several_folders(make: Make, write: Write, tmp_path: Path) -> None:
    """Merge two sweeps over K with one seed each. The folder of one of their runs is given a second time."""
    for sweep, seed in (("first", 1), ("second", 2)):
        for job, k in enumerate((1, 4)):
            write(tmp_path / sweep / str(job), make(k=k, seed=seed, policy=0.6 + k / 50 + seed / 100, p=0.01 * seed))
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "second" / "1"]
    sweep = read_sweep(folders, tmp_path / "both")
    assert [job.folder for job in sweep.jobs] == ["first/0", "second/0", "first/1", "second/1"]
    assert [(point.k, len(point.jobs)) for point in sweep.points] == [(1, 2), (4, 2)]
    # Holm multiplies the sorted p-values 0.01, 0.01, 0.02, 0.02 by 4, 3, 2, 1. No result may be below the previous one.
    assert [job.p_holm for job in sweep.jobs] == pytest.approx([0.04] * 4)
    # K=1 has the differences 0.03 and 0.04: the mean is 7 times its standard error. K=4 has 0.09 and 0.10: 19 times.
    # Holm multiplies the smaller p-value by 2.
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


def test_holm_ignores_jobs_without_a_p_value(make: Make, write: Write, tmp_path: Path) -> None:
    write(tmp_path / "0", make(p=0.02, k=1))
    write(tmp_path / "1", make(p=float("nan"), k=2))
    first, second = read_sweep([tmp_path]).points
    assert first.p_holm == 0.02
    assert math.isnan(second.p_holm)
    assert second.outcome == "level"


def test_baselines_with_equal_scores_differ_by_artifact_key(make: Make, write: Write, tmp_path: Path) -> None:
    """SFT models of different data may score the same by chance. Their keys tell them apart."""
    for noise, key in ((0.0, "aa"), (0.3, "bb")):
        for k in (1, 4):
            result = make(k=k, config={"data": {"noise": noise}})
            stages = [{**stage, "key": key} if stage["name"] == "sft" else stage for stage in result.stages]
            write(tmp_path / f"{key}-{k}", replace(result, stages=stages))
    assert read_sweep([tmp_path]).baselines == [["data.noise=0.0"], ["data.noise=0.3"]]


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


def test_variants_name_the_configured_classes() -> None:
    def config(*overrides: str) -> Any:
        return OmegaConf.to_container(composed("output=out", *overrides), resolve=True)

    filters = {name: config(f"filter={name}") for name in ("least_similar", "random", "mmr")}
    other = config("filter=random", "filter.selector.fraction=0.5")
    names = variants({**filters, "other": other})
    assert names["least_similar"] == "filter.selector=LeastSimilar"
    assert names["mmr"] == "filter.selector=MaximalMarginalRelevance"
    assert names["random"] == "filter.selector=Random, filter.selector.fraction=0.3"
    assert names["other"] == "filter.selector=Random, filter.selector.fraction=0.5"
    objectives = {name: config(f"objective={name}") for name in ("self_contrast", "softmax")}
    assert variants(objectives) == {"self_contrast": "objective=SelfContrast", "softmax": "objective=Softmax"}
    chosen = {name: config(f"chosen={name}") for name in ("target", "consensus")}
    assert variants(chosen) == {"target": "chosen=Target", "consensus": "chosen=Consensus"}


def test_jobs_of_one_seed_are_never_pooled(make: Make, write: Write, tmp_path: Path) -> None:
    """Two jobs have the same settings but different results, for example because their data file has changed."""
    for job, policy in (("a", 0.7), ("b", 0.8)):
        write(tmp_path / job, make(seed=1, policy=policy))
    write(tmp_path / "c", make(seed=2))
    points = read_sweep([tmp_path]).points
    assert [(point.variant, len(point.jobs)) for point in points] == [("", 1), ("run a", 1), ("run b", 1)]


def test_variants_of_methods_omit_the_methods_own_settings() -> None:
    def config(method: str, core: str, beta: float) -> dict[str, object]:
        return {"negatives": 1, "seed": 1, "label": method, "objective": {"core": core, "beta": beta}}

    names = variants(
        {"0": config("SPIN", "a", 0.1), "1": config("DPO_std", "b", 0.1), "2": config("DPO_std", "b", 0.5)}
    )
    assert names == {"0": "SPIN", "1": "DPO_std, objective.beta=0.1", "2": "DPO_std, objective.beta=0.5"}
