"""Run whole jobs that choose candidates as positives, on responses with different verifier scores."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import TINY_FOR_ANY_MODEL, TINY_MODEL, read_result, run_train, stages
from selfcontrast.data.builtin import Builtin
from selfcontrast.data.verifier import BuiltinVerifier
from selfcontrast.planning.plan import DataReader, plan
from test_config import composed

pytestmark = pytest.mark.slow  # 15 s per job

SIZES = {"train": 96, "validation": 24, "test": 24}
DATA = tuple(f"data.{split}={count}" for split, count in SIZES.items())
SETTINGS = tuple(
    setting
    for setting in TINY_FOR_ANY_MODEL
    if not setting.startswith(("generator.", "trainer.epochs", "filter.", "negatives="))
)
ALIGN = ("filter", "reference", "align")


def write_responses(folder: Path) -> dict[str, list[str]]:
    """Write and return responses per training prompt: wrong ones and a right one, which is sometimes the target."""
    data = Builtin(**{k: v for k, v in composed(*DATA).data.items() if k != "_target_"})
    score = BuiltinVerifier().score
    examples = [e for e in data.load()["train"] if score(e, e.target) == 1 > max(score(e, e.rejected), score(e, "No."))]
    wrong = ("I do not know.", "No.", "It is late.")
    responses = {}
    for i, e in enumerate(examples[:16]):
        responses[e.id] = [f" {e.target} " if i % 2 else f"{e.target} Indeed.", e.rejected, *wrong]
    rows = [{"prompt": e.prompt, "responses": responses[e.id]} for e in examples[:16]]
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return responses


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    source = ("generator=import", "generator.path=own.jsonl", "trainer.epochs=1", "tracking=none")
    defaults = (
        ()
        if any(o.startswith("method=") for o in overrides)
        else ("negatives=2", "filter.max_negatives=2", "filter=none")
    )
    ended = run_train(*SETTINGS, *DATA, *TINY_MODEL, *source, *defaults, *overrides, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "chosen: candidates" in ended.stderr or "chosen=target" in overrides
    return read_result(folder / "out")


def test_chosen_options_share_samples_and_train_on_different_groups(tmp_path: Path) -> None:
    responses = write_responses(tmp_path)
    results = {
        name: run(tmp_path, f"chosen={name}") for name in ("target", "best_of_n", "consensus", "target_and_best")
    }
    keys = {name: {label: stage["key"] for label, stage in stages(result).items()} for name, result in results.items()}
    for name in ("best_of_n", "consensus", "target_and_best"):
        differ = {label for label in keys["target"] if keys["target"][label] != keys[name][label]}
        assert differ == {*ALIGN, *(label for label in keys["target"] if label.endswith("Self-Contrast"))}
    best = stages(results["best_of_n"])
    positives = pd.read_parquet(Path(best["filter"]["path"]) / "chosen.parquet")
    negatives = pd.read_parquet(Path(best["filter"]["path"]) / "negatives.parquet")
    for row in positives.itertuples():
        assert row.text in {text.strip() for text in responses[row.id]}
        assert row.text not in set(negatives.loc[negatives["id"] == row.id, "text"])
    assert best["filter"]["summary"]["score_chosen"] > best["filter"]["summary"]["score_negatives"]
    assert 0 < best["filter"]["summary"]["chosen_is_target_share"] < 1
    both = stages(results["target_and_best"])["align"]["summary"]
    assert both["prompts"] < both["groups"] < 2 * both["prompts"]  # for some prompts the best candidate is the target
    assert any(row["chosen"] for row in results["best_of_n"]["negatives_shown"])
    assert "mean score, chosen candidates" in (tmp_path / "out" / "report.html").read_text()


def test_methods_with_a_chosen_candidate_share_the_filter(tmp_path: Path) -> None:
    write_responses(tmp_path)
    pair, rft = (run(tmp_path, f"method={name}") for name in ("best_vs_worst", "rft"))
    first, second = stages(pair), stages(rft)
    assert {name: first[name]["key"] for name in ("filter", "reference")} == {
        name: second[name]["key"] for name in ("filter", "reference")
    }
    assert first["align"]["summary"]["prompts"] == second["align"]["summary"]["prompts"] > 8
    assert [each["align"]["summary"]["negatives_per_prompt"] for each in (first, second)] == [1, 0]


def test_chosen_changes_no_key_before_the_filter(tmp_path: Path) -> None:
    """The choice changes the filter, the stages that need its result, and the evaluation of the policy."""
    folders = (f"store={tmp_path / 'store'}", "output=out", "tracking=none")
    steps = {step.label: step.artifact for step in plan(composed(*DATA, *folders), DataReader()).steps}
    chosen = plan(composed(*DATA, *folders, "chosen=consensus"), DataReader()).steps
    differ = {step.label for step in chosen if steps[step.label].key != step.artifact.key}
    assert differ == {*ALIGN, *(label for label in steps if label.endswith("Self-Contrast"))}
