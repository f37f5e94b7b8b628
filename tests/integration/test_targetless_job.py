"""Run a whole job in which most prompts have no target, as in ScPO."""

import json
from pathlib import Path

import pandas as pd
import pytest

from jobs import TINY_FOR_ANY_MODEL, TINY_MODEL, read_result, run_train, stages
from selfcontrast.data.jsonl import Jsonl

pytestmark = pytest.mark.slow

EXCLUDED = ("generator.", "fraction=", "filter.", "negatives=", "trainer.epochs")  # set by the method or the file
SETTINGS = [s for s in TINY_FOR_ANY_MODEL if not s.startswith(EXCLUDED)]


def test_scpo_trains_and_evaluates_prompts_without_targets(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"What is {a} plus {b}?",
            **({"target": f"{a} plus {b} is {a + b}."} if a < 3 else {}),
            "sum": a + b,
            "responses": [f"It is {a + b}.", f"It is {a + b}.", f"{b} and {a}?", "I do not know"],
        }
        for a in range(8)
        for b in range(6)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = ("data=jsonl", "data.path=own.jsonl", "generator=import", "generator.path=own.jsonl")
    graded = ("data.targets=optional", "data.answer_column=sum", "verifier=final_number")
    overrides = (*SETTINGS, *TINY_MODEL, *files, *graded, "trainer.epochs=1", "tracking=none")
    splits = Jsonl(str(tmp_path / "own.jsonl"), 0.05, 0.1, None, "sum", "optional").load()
    train = [example.has_target for example in splits["train"]]
    test = [example.has_target for example in splits["test"]]
    assert 0 < sum(test) < len(test), "some held-out prompts have a target, and some have none"

    refused = run_train(*overrides, "negatives=1", "filter.max_negatives=1", cwd=tmp_path)
    assert refused.returncode == 1
    message = f"chosen=Target needs targets, and {train.count(False)} of {len(train)} training prompts have none"
    assert message in refused.stderr
    assert not (tmp_path / "store").exists(), "nothing has been computed"

    ended = run_train(*overrides, "method=scpo", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"{test.count(False)} of {len(test)} prompts of the split test have no target" in ended.stderr
    by_stage = stages(read_result(tmp_path / "out"))
    assert by_stage["sft"]["summary"]["examples"] == sum(train)
    assert by_stage["align"]["summary"]["prompts"] == len(train)
    folder = Path(by_stage["filter"]["path"])
    chosen, negatives = (pd.read_parquet(folder / f"{name}.parquet") for name in ("chosen", "negatives"))
    assert chosen["text"].str.startswith("It is").all()
    assert negatives["similarity"].isna().sum() == train.count(False)
    scored = Path(by_stage["evaluate SFT"]["path"])
    assert pd.read_parquet(scored / "answers.parquet")["id"].nunique() == len(test)
    assert len(pd.read_parquet(scored / "likelihood.parquet")) == sum(test)
    assert (tmp_path / "out" / "report.html").is_file()
