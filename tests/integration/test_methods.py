"""Run the baselines through the real command, and compare their stages with those of Self-Contrast."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import TINY, Finished, read_result, run_train, stages
from selfcontrast.data.builtin import Builtin
from selfcontrast.planning.plan import DataReader, plan
from test_config import composed

SET_BY_METHOD = ("negatives=", "filter.max_negatives=", "filter.on_shortage=", "generator.samples=")
PAIRED = ("generator.max_new_tokens=",)  # generator=pairs has no such setting


def run(folder: Path, finished: Finished, *overrides: str, without: tuple[str, ...] = SET_BY_METHOD) -> dict[str, Any]:
    settings = [setting for setting in TINY if not setting.startswith(without)]
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    ended = run_train(*settings, *overrides, cwd=folder, env=store)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "out" / "report.html").is_file()
    return read_result(folder / "out")


def test_sft_continued_has_the_prompts_and_steps_of_self_contrast(finished: Finished, tmp_path: Path) -> None:
    result = run(tmp_path, finished, "method=sft_continued", without=())
    after, before = stages(result), stages(finished.result)
    for part in ("sft", "generate", "embed", "filter", "reference"):
        assert (after[part]["key"], after[part]["cached"]) == (before[part]["key"], True)
    continued, aligned = after["align"]["summary"], before["align"]["summary"]
    assert [continued[name] for name in ("prompts", "steps")] == [aligned[name] for name in ("prompts", "steps")]
    assert continued["negatives_per_prompt"] == 0
    assert continued["tokens"] < aligned["tokens"]
    assert {row["system"] for row in result["comparison"]["rows"]} == {"SFT", "SFT continued"}
    assert (
        result["value"]
        == next(row for row in result["comparison"]["rows"] if row["system"] != "SFT")["mean"]["estimate"]
    )


def test_sweep_of_methods_with_a_token_budget_finishes(finished: Finished, tmp_path: Path) -> None:
    """The job with K = 1 gets as many tokens as the finished job with K = 2. The method sft has no align stage."""
    tokens = stages(finished.result)["align"]["summary"]["tokens"]
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    settings = [setting for setting in TINY if not setting.startswith("negatives=")]
    sweep = ("method=sft,self_contrast", "negatives=1", f"trainer.tokens={tokens}", "hydra.sweep.dir=sweep")
    ended = run_train("-m", *settings, *sweep, cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    sft_only, with_budget = (read_result(tmp_path / "sweep" / job) for job in "01")
    assert {name.partition(" ")[0] for name in stages(sft_only)} == {
        "data",
        "contamination",
        "sft",
        "evaluate",
        "divergence",
        "dialogues",
    }
    assert sft_only["policy"] == str(Path(stages(sft_only)["sft"]["path"]) / "model")
    summary, other = (stages(result)["align"]["summary"] for result in (with_budget, finished.result))
    per_step = max(summary["tokens"] / summary["steps"], 1)
    assert tokens <= summary["tokens"] < tokens + 4 * per_step
    assert summary["steps"] > other["steps"]
    table = pd.read_csv(tmp_path / "sweep" / "results.csv").set_index("variant")
    assert table.loc["Self-Contrast", "align_tokens"] == summary["tokens"]
    assert pd.isna(table.loc["none", "difference"])


def test_dpo_std_trains_on_the_datas_own_pairs(finished: Finished, tmp_path: Path) -> None:
    result = run(tmp_path, finished, "method=dpo_std", without=(*SET_BY_METHOD, *PAIRED))
    data = {k: v for k, v in result["config"]["data"].items() if k != "_target_"}
    rejected = {example.id: example.rejected for example in Builtin(**data).load()["train"]}
    negatives = pd.read_parquet(Path(stages(result)["filter"]["path"]) / "negatives.parquet")
    assert len(negatives) == stages(result)["align"]["summary"]["prompts"] > 8
    assert {row.id: row.text for row in negatives.itertuples()} == {name: rejected[name] for name in negatives["id"]}
    candidate_ids = pd.read_parquet(Path(stages(finished.result)["generate"]["path"]) / "candidates.parquet")["id"]
    assert set(negatives["id"]) <= set(candidate_ids)
    assert {row["system"] for row in result["comparison"]["rows"]} == {"SFT", "DPO_std"}


def test_spin_draws_one_response_per_prompt_in_each_iteration(finished: Finished, tmp_path: Path) -> None:
    result = run(tmp_path, finished, "method=spin", "iterations=2")
    by_name = stages(result)
    assert {row["system"] for row in result["comparison"]["rows"]} == {"SFT", "SPIN iteration 1", "SPIN"}
    for prefix in ("iteration-1/", ""):
        generated, aligned = by_name[f"{prefix}generate"]["summary"], by_name[f"{prefix}align"]["summary"]
        assert generated["responses"] == generated["prompts"] == 16
        assert aligned["negatives_per_prompt"] == 1
    assert result["policy"] == str(Path(by_name["align"]["path"]) / "model")


def test_dft_with_the_samplers_log_probs_scores_only_targets(finished: Finished, tmp_path: Path) -> None:
    """The importance weights of DFT are 1 at the start."""
    result = run(tmp_path, finished, "objective=dft", "reference=sampler", without=())
    after, before = stages(result), stages(finished.result)
    for part in ("sft", "generate", "embed", "filter"):
        assert (after[part]["key"], after[part]["cached"]) == (before[part]["key"], True)
    assert 0 < after["reference"]["summary"]["tokens"] < before["reference"]["summary"]["tokens"] / 2
    first, last = result["histories"]["align"][0], result["histories"]["align"][-1]
    assert first["loss"] == pytest.approx(-first["chosen_log_prob"], abs=1e-2)
    assert first["chosen_log_prob_change"] == pytest.approx(0, abs=1e-2)
    assert last["chosen_log_prob_change"] > 0


def test_swepo_without_a_reference_trains_on_scores(finished: Finished, tmp_path: Path) -> None:
    result = run(tmp_path, finished, "objective=swepo", "reference=none", without=())
    assert "reference" not in stages(result)
    negatives = pd.read_parquet(Path(stages(result)["filter"]["path"]) / "negatives.parquet")
    assert negatives["score"].between(0, 1).all()
    assert (negatives["log_prob"] < 0).all()
    first, last = result["histories"]["align"][0], result["histories"]["align"][-1]
    assert last["loss"] < first["loss"]
    assert first["chosen_reward"] == pytest.approx(0.1 * first["chosen_log_prob"], rel=1e-4)


def test_plan_has_the_keys_of_the_run(finished: Finished) -> None:
    """For K = 4, which no other test runs in this store, the plan finds the shared stages."""
    folders = (f"store={finished.folder / 'store'}", "output=out", "tracking=none")
    planned = plan(composed(*TINY, *folders), DataReader())
    assert {step.label: step.artifact.key for step in planned.steps} == {
        name: stage["key"] for name, stage in stages(finished.result).items()
    }
    assert all(step.artifact.cached for step in planned.steps)
    other = plan(composed(*TINY, *folders, "negatives=4"), DataReader())
    missing = {step.label for step in other.steps if not step.artifact.cached}
    assert missing == {
        label for label in stages(finished.result) if label == "align" or label.endswith("Self-Contrast")
    }
