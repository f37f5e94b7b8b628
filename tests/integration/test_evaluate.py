"""`evaluate.py` on a finished job's policy, where it lies and as a copy."""

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


def evaluated(folder: Path, store: Path, model: Path, *overrides: str) -> tuple[dict[str, Any], str]:
    folder.mkdir()
    env = {"SELFCONTRAST_STORE": str(store)}
    ended = run_train(f"model={model}", *SETTINGS, *overrides, cwd=folder, env=env, script="evaluate.py")
    assert ended.returncode == 0, ended.stderr
    return read_result(folder / "out"), ended.stdout


def test_a_model_is_measured_as_a_job_measures_its_policy(finished: Finished, tmp_path: Path) -> None:
    policy = Path(finished.result["policy"])
    rows = [row for row in finished.result["comparison"]["rows"] if row["system"] == "Self-Contrast"]
    store = tmp_path / "store"
    shutil.copytree(finished.folder / "store", store)
    own = store / policy.relative_to(finished.folder / "store")
    recalled, printed = evaluated(tmp_path / "own", store, own)
    assert all(stage["cached"] for stage in recalled["stages"])
    assert stages(recalled)["evaluate model"]["key"] == stages(finished.result)["evaluate Self-Contrast"]["key"]
    assert "dialogues" in recalled["benchmarks"]
    assert "pairwise" not in recalled["benchmarks"]  # there is no SFT model to compare with
    assert f"{rows[0]['mean']['estimate']:.3f}" in printed

    shutil.copytree(own, tmp_path / "elsewhere")
    computed, _ = evaluated(tmp_path / "copy", store, tmp_path / "elsewhere")
    assert not stages(computed)["evaluate model"]["cached"]
    for found in (recalled, computed):
        assert [row["mean"] for row in found["comparison"]["rows"]] == [row["mean"] for row in rows]
    again, _ = evaluated(tmp_path / "again", store, tmp_path / "elsewhere")
    assert all(stage["cached"] for stage in again["stages"])


def test_what_is_said_of_a_model_is_on_its_page_and_in_its_tables(finished: Finished, tmp_path: Path) -> None:
    store = finished.folder / "store"
    result, _ = evaluated(tmp_path / "run", store, Path(finished.result["policy"]), "tracking=csv")
    page = (tmp_path / "run/out/report.html").read_text()
    row = result["comparison"]["rows"][0]
    assert f"{row['mean']['estimate']:.3f}" in page
    assert "Benchmark: dialogues" in page
    assert "<script" not in page
    tables = tmp_path / "run/out/tables"
    judgments = pd.read_csv(tables / "judgments" / "dialogues.csv")
    kept = pd.read_parquet(Path(stages(result)["dialogues model"]["path"]) / "judgments.parquet")
    assert len(judgments) == len(kept) > 0
    assert list(judgments.columns[:4]) == ["system", "category", "prompt", "answer"]
    assert list(judgments["verdict"]) == pytest.approx(list(kept["rating"]))
    assert len(pd.read_csv(tables / "samples.csv")) == len(result["samples"]) > 0


def test_a_chat_template_in_place_of_the_models_own(finished: Finished, tmp_path: Path) -> None:
    """The same weights under another template are another model, and answer otherwise; its own changes nothing."""
    store, policy = finished.folder / "store", Path(finished.result["policy"])
    own = load_tokenizer(policy).chat_template
    (tmp_path / "other.jinja").write_text(
        own.replace("{{ message.content", "{{ 'say: ' if message.role == 'user' }}{{ message.content")
    )
    (tmp_path / "own.jinja").write_text(own)
    found = {}
    for name in ("own", "other"):
        template = f"model.chat_template={tmp_path / name}.jinja"
        found[name], _ = evaluated(tmp_path / name, store, policy, template)
    rows = [row for row in finished.result["comparison"]["rows"] if row["system"] == "Self-Contrast"]
    assert [row["mean"] for row in found["own"]["comparison"]["rows"]] == [row["mean"] for row in rows]
    answers = {
        name: pd.read_parquet(Path(stages(result)["evaluate model"]["path"]) / "answers.parquet")["text"]
        for name, result in found.items()
    }
    assert list(answers["own"]) != list(answers["other"])
    assert load_tokenizer(policy).chat_template == own


def test_no_model_is_a_users_mistake(tmp_path: Path) -> None:
    for arguments, words in (([], "model.path is required"), (["model=./nowhere"], "no such folder")):
        ended = run_train(*arguments, cwd=tmp_path, script="evaluate.py")
        assert ended.returncode == 1
        assert words in ended.stderr
        assert [line.partition(":")[0] for line in ended.stderr.splitlines()][1:] == ["error"]


NAMES = ["it's", "a\\'b", "c\\", "\\\\", "a, b=c", "[x]", "{y}", "  z ", "''", "#c", "null", "1e5"]


@pytest.mark.parametrize("name", NAMES)
def test_folder_of_any_name_reaches_the_config_as_it_is(name: str) -> None:
    _, override = overrides([f"model=/models/{name}"])
    assert OverridesParser.create().parse_override(override).value() == f"/models/{name}"
