"""Run `evaluate.py` on a finished job's policy, in the store and as a copy."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from jobs import TINY, TINY_MODEL, Finished, read_result, run_train, stages
from selfcontrast.cli.evaluate import overrides
from selfcontrast.models.loading import load_tokenizer

SETTINGS = [setting for setting in TINY if setting not in TINY_MODEL]


def run_evaluate(folder: Path, store: Path, model: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    folder.mkdir()
    env = {"SELFCONTRAST_STORE": str(store)}
    ended = run_train(f"model={model}", *SETTINGS, *overrides, cwd=folder, env=env, script="evaluate.py")
    assert ended.returncode == 0, ended.stderr
    return read_result(folder / "out"), ended.stdout


def test_evaluate_gives_the_jobs_numbers_for_its_policy(finished: Finished, tmp_path: Path) -> None:
    policy = Path(finished.result["policy"])
    rows = [row for row in finished.result["comparison"]["rows"] if row["system"] == "Self-Contrast"]
    store = tmp_path / "store"
    shutil.copytree(finished.folder / "store", store)
    stored = store / policy.relative_to(finished.folder / "store")
    cached, printed = run_evaluate(tmp_path / "stored", store, stored)
    assert all(stage["cached"] for stage in cached["stages"])
    assert stages(cached)["evaluate model"]["key"] == stages(finished.result)["evaluate Self-Contrast"]["key"]
    assert "dialogues" in cached["benchmarks"]
    assert "pairwise" not in cached["benchmarks"]  # it needs an SFT model to compare with
    assert f"{rows[0]['mean']['estimate']:.3f}" in printed

    shutil.copytree(stored, tmp_path / "elsewhere")
    computed, _ = run_evaluate(tmp_path / "copy", store, tmp_path / "elsewhere")
    assert not stages(computed)["evaluate model"]["cached"]
    for result in (cached, computed):
        assert [row["mean"] for row in result["comparison"]["rows"]] == [row["mean"] for row in rows]
    again, _ = run_evaluate(tmp_path / "again", store, tmp_path / "elsewhere")
    assert all(stage["cached"] for stage in again["stages"])


def test_evaluate_writes_page_and_tables(finished: Finished, tmp_path: Path) -> None:
    store = finished.folder / "store"
    result, _ = run_evaluate(tmp_path / "run", store, Path(finished.result["policy"]), "tracking=csv")
    page = (tmp_path / "run/out/report.html").read_text()
    row = result["comparison"]["rows"][0]
    assert f"{row['mean']['estimate']:.3f}" in page
    assert "Benchmark: dialogues" in page
    assert "<script" not in page
    tables = tmp_path / "run/out/tables"
    judgments = pd.read_csv(tables / "judgments" / "dialogues.csv")
    stored_judgments = pd.read_parquet(Path(stages(result)["dialogues model"]["path"]) / "judgments.parquet")
    assert len(judgments) == len(stored_judgments) > 0
    assert list(judgments.columns[:4]) == ["system", "category", "prompt", "answer"]
    assert list(judgments["verdict"]) == pytest.approx(list(stored_judgments["rating"]))
    assert len(pd.read_csv(tables / "samples.csv")) == len(result["samples"]) > 0


def test_evaluate_with_another_chat_template_gives_other_answers(finished: Finished, tmp_path: Path) -> None:
    """The same weights with another template are another model. The model's own template changes nothing."""
    store, policy = finished.folder / "store", Path(finished.result["policy"])
    template = load_tokenizer(policy).chat_template
    (tmp_path / "other.jinja").write_text(
        template.replace("{{ message.content", "{{ 'say: ' if message.role == 'user' }}{{ message.content")
    )
    (tmp_path / "own.jinja").write_text(template)
    results = {}
    for name in ("own", "other"):
        override = f"model.chat_template={tmp_path / name}.jinja"
        results[name], _ = run_evaluate(tmp_path / name, store, policy, override)
    rows = [row for row in finished.result["comparison"]["rows"] if row["system"] == "Self-Contrast"]
    assert [row["mean"] for row in results["own"]["comparison"]["rows"]] == [row["mean"] for row in rows]
    answers = {
        name: pd.read_parquet(Path(stages(result)["evaluate model"]["path"]) / "answers.parquet")["text"]
        for name, result in results.items()
    }
    assert list(answers["own"]) != list(answers["other"])
    assert load_tokenizer(policy).chat_template == template


def test_evaluate_without_a_model_exits_with_one_line(tmp_path: Path) -> None:
    for arguments, message in (([], "model.path is required"), (["model=./nowhere"], "./nowhere")):
        ended = run_train(*arguments, cwd=tmp_path, script="evaluate.py")
        assert ended.returncode == 1
        assert message in ended.stderr
        assert [line.partition(":")[0] for line in ended.stderr.splitlines()][1:] == ["error"]


NAMES = ["it's", "a\\'b", "c\\", "\\\\", "a, b=c", "[x]", "{y}", "  z ", "''", "#c", "null", "1e5"]


@pytest.mark.parametrize("name", NAMES)
def test_overrides_keep_a_folder_of_any_name(name: str) -> None:
    _, override = overrides([f"model=/models/{name}"])
    assert OverridesParser.create().parse_override(override).value() == f"/models/{name}"
