"""Whole jobs in which candidates are chosen, on responses that the verifier tells apart."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import TINY_ANYWHERE, TINY_MODEL, read_result, run_train, stages
from selfcontrast.data.builtin import Builtin
from selfcontrast.data.verifier import BuiltinVerifier
from selfcontrast.planning.plan import DataReader, plan
from test_config import composed

pytestmark = pytest.mark.slow  # 15 s a job

SIZES = {"train": 96, "validation": 24, "test": 24}
DATA = tuple(f"data.{split}={count}" for split, count in SIZES.items())
SETTINGS = tuple(
    setting
    for setting in TINY_ANYWHERE
    if not setting.startswith(("generator.", "trainer.epochs", "filter.", "negatives="))
)
ALIGN = ("filter", "reference", "align")


def given(folder: Path) -> dict[str, list[str]]:
    """Per training prompt its responses: wrong ones, and a right one, which for every other prompt is the target."""
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
    few = (
        ()
        if any(o.startswith("method=") for o in overrides)
        else ("negatives=2", "filter.max_negatives=2", "filter=none")
    )
    ended = run_train(*SETTINGS, *DATA, *TINY_MODEL, *source, *few, *overrides, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "chosen: candidates" in ended.stderr or "chosen=target" in overrides
    return read_result(folder / "out")


def test_each_choice_shares_what_is_sampled_and_trains_on_its_own_groups(tmp_path: Path) -> None:
    responses = given(tmp_path)
    found = {name: run(tmp_path, f"chosen={name}") for name in ("target", "best_of_n", "consensus", "target_and_best")}
    keys = {name: {label: stage["key"] for label, stage in stages(result).items()} for name, result in found.items()}
    for name in ("best_of_n", "consensus", "target_and_best"):
        differ = {label for label in keys["target"] if keys["target"][label] != keys[name][label]}
        assert differ == {*ALIGN, *(label for label in keys["target"] if label.endswith("Self-Contrast"))}
    best = stages(found["best_of_n"])
    positives = pd.read_parquet(Path(best["filter"]["path"]) / "chosen.parquet")
    negatives = pd.read_parquet(Path(best["filter"]["path"]) / "negatives.parquet")
    for row in positives.itertuples():
        assert row.text in {text.strip() for text in responses[row.id]}
        assert row.text not in set(negatives.loc[negatives["id"] == row.id, "text"])
    assert best["filter"]["summary"]["score_chosen"] > best["filter"]["summary"]["score_negatives"]
    assert 0 < best["filter"]["summary"]["chosen_is_target_share"] < 1
    both = stages(found["target_and_best"])["align"]["summary"]
    assert both["prompts"] < both["groups"] < 2 * both["prompts"]  # some prompts' best candidate is the target
    assert any(row["chosen"] for row in found["best_of_n"]["negatives_shown"])
    assert "mean score, chosen candidates" in (tmp_path / "out" / "report.html").read_text()


def test_the_arms_share_their_choice(tmp_path: Path) -> None:
    given(tmp_path)
    pair, tuned = (run(tmp_path, f"method={arm}") for arm in ("best_vs_worst", "rft"))
    one, other = stages(pair), stages(tuned)
    assert {name: one[name]["key"] for name in ("filter", "reference")} == {
        name: other[name]["key"] for name in ("filter", "reference")
    }
    assert one["align"]["summary"]["prompts"] == other["align"]["summary"]["prompts"] > 8
    assert [found["align"]["summary"]["negatives_per_prompt"] for found in (one, other)] == [1, 0]


def test_the_targets_job_keeps_its_keys(tmp_path: Path) -> None:
    """If the target is chosen, the settings in the keys do not mention the choice."""
    place = (f"store={tmp_path / 'store'}", "output=out", "tracking=none")
    steps = {step.label: step.artifact for step in plan(composed(*DATA, *place), DataReader()).steps}
    chosen = plan(composed(*DATA, *place, "chosen=consensus"), DataReader()).steps
    differ = {step.label for step in chosen if steps[step.label].key != step.artifact.key}
    assert differ == {*ALIGN, *(label for label in steps if label.endswith("Self-Contrast"))}
