"""Run the paper's experiments end to end with `+debug=tiny`, for every data set and method."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import read_result, run_train, stages
from selfcontrast.debug import ROWS, write_debug
from selfcontrast.models.loading import load_tokenizer
from test_experiments import overrides_of


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs' data and models, and their shared store."""
    folder = tmp_path_factory.mktemp("experiments")
    write_debug(folder / "debug")
    return folder


def run(workplace: Path, experiment: str, *overrides: str, script: str = "train.py") -> dict[str, Any]:
    out = workplace / experiment.replace("/", "_")
    names = overrides_of(experiment) if script == "train.py" else [experiment]
    ended = run_train(*names, "+debug=tiny", f"hydra.run.dir={out}", *overrides, cwd=workplace, script=script)
    assert ended.returncode == 0, ended.stderr
    assert (out / "report.html").is_file()
    return read_result(out)


def systems(result: dict[str, Any]) -> set[str]:
    return {row["system"] for row in result["comparison"]["rows"]}


def negatives(result: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(Path(stages(result)["filter"]["path"]) / "negatives.parquet")


def test_hh_rlhf_self_contrast_and_sft_share_the_sft_stage(workplace: Path) -> None:
    result = run(workplace, "hh_rlhf/self_contrast", "negatives=4", "generator.samples=24")
    by_name = stages(result)
    summary = by_name["align"]["summary"]
    assert summary["negatives_per_prompt"] == 4
    assert 16 <= summary["prompts"] <= ROWS
    assert summary["steps"] == -(-summary["prompts"] // 8)
    assert systems(result) == {"SFT", "Self-Contrast"}
    measured = {(line["system"], line["what"]) for line in result["benchmarks"]["reward"]["lines"]}
    assert ("Self-Contrast", "win rate over target") in measured
    assert ("Self-Contrast", "mean of sigmoid(reward)") in measured
    sft_only = run(workplace, "hh_rlhf/sft", script="studies/paper/reproduce.py")
    assert (stages(sft_only)["sft"]["key"], stages(sft_only)["sft"]["cached"]) == (by_name["sft"]["key"], True)
    assert systems(sft_only) == {"SFT"}
    template = load_tokenizer(Path(result["policy"])).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert template == "<s><|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"


def test_ultrachat_dpo_starts_from_a_fine_tuned_model(workplace: Path) -> None:
    """The pairs come from UltraFeedback, the SFT model is given, and the evaluation uses UltraChat's prompts."""
    result = run(workplace, "ultrachat/dpo_std")
    by_name = stages(result)
    weights = (workplace / "debug" / "model" / "model.safetensors").read_bytes()
    assert (workplace / by_name["sft"]["path"] / "model" / "model.safetensors").read_bytes()[-1000:] == weights[-1000:]
    assert (by_name["sft"]["summary"]["steps"], by_name["sft"]["summary"]["tokens"]) == (0, 0)
    drawn = negatives(result)
    assert (drawn["rank"] == 0).all()
    assert len(drawn) == by_name["align"]["summary"]["prompts"] >= 16
    assert systems(result) == {"SFT", "DPO_std"}


def test_nectar_spin_runs_two_iterations_with_an_added_token(workplace: Path) -> None:
    result = run(workplace, "nectar/spin", "iterations=2")
    by_name = stages(result)
    assert systems(result) == {"SFT", "SPIN iteration 1", "SPIN"}
    for prefix in ("iteration-1/", ""):
        generated = by_name[f"{prefix}generate"]["summary"]
        assert generated["responses"] == generated["prompts"]
        assert by_name[f"{prefix}align"]["summary"]["negatives_per_prompt"] == 1
    tokenizer = load_tokenizer(Path(result["policy"]))
    assert tokenizer.convert_tokens_to_ids("<|end_of_turn|>") == len(tokenizer) - 1


@pytest.mark.parametrize(
    ("experiment", "method"),
    [
        ("hh_rlhf/dpo_std", "DPO_std"),
        ("hh_rlhf/spin", "SPIN"),
        ("ultrachat/sft", None),
        ("ultrachat/self_contrast", "Self-Contrast"),
        ("ultrachat/spin", "SPIN"),
        ("nectar/sft", None),
        ("nectar/dpo_std", "DPO_std"),
        ("nectar/self_contrast", "Self-Contrast"),
    ],
)
def test_experiment_runs(experiment: str, method: str | None, workplace: Path) -> None:
    smaller = {"Self-Contrast": ["negatives=4", "generator.samples=24"], "SPIN": ["iterations=1"]}.get(method or "", [])
    result = run(workplace, experiment, *smaller)
    assert systems(result) == {"SFT", *([method] if method else [])}
    assert result["benchmarks"]["reward"]["lines"]
