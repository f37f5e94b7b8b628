"""Compare the costs of stages with values by hand, and test speeds and sizes that are unknown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import ROOT
from selfcontrast.config import GROUPS, assemble, build
from selfcontrast.errors import UserError
from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.store import Artifact
from studies.paper.costs import (
    SPEEDS,
    Sizes,
    Work,
    checked,
    from_file,
    hours,
    measured,
    parameters,
    sizes_of,
    work,
)
from test_config import composed
from tiny import example

SIZES = Sizes(prompts=100, evaluated=20, prompt_tokens=10, response_tokens=5, parameters=1000)


def step(stage: str, label: str = "", summary: dict[str, Any] | None = None) -> PlannedStage:
    return PlannedStage(label or stage, Artifact(stage, "0f", Path("none"), {"summary": summary or {}}, cached=False))


def parts(*overrides: str) -> Any:
    cfg = composed("output=out", *overrides)
    built = {group: build(cfg[group], group) for group in GROUPS}
    return assemble(cfg, built, {"train": [], "validation": [], "test": []})


def test_work_of_the_default_job_equals_values_by_hand() -> None:
    """The default job has N = 64 samples, K = 8 of a pool of 16 negatives, and 6 + 6 + 1 answers per test prompt.

    It has eight epochs of fine-tuning and four of preference training. MiniLM's embeddings have 384 dimensions.
    """
    by_stage = {
        stage: work(step(stage), parts(), SIZES)
        for stage in ("sft", "generate", "embed", "filter", "reference", "align", "evaluate", "contamination")
    }
    assert by_stage == {
        "sft": Work("train", 8 * 100 * 15, 4000),
        "generate": Work("generate", 100 * 64 * 5, 100 * 64 * 5 * 8),
        "embed": Work("embed", 100 * 65, 100 * 65 * 384 * 2),
        "filter": Work(None, 0, 0),
        "reference": Work("score", 100 * (10 + 17 * 5), 100 * (10 + 17 * 5) * 4),
        "align": Work("train", 4 * 100 * (10 + 9 * 5), 4000),
        "evaluate": Work("generate", 20 * 13 * 5, 0),
        "contamination": Work(None, 0, 0),
    }


def test_work_of_divergence_and_checkpoints() -> None:
    """Two models score the six answers at temperature 1, but one model scores those of SFT.

    A checkpoint samples only these six answers.
    """
    settings = parts("evaluation.checkpoints=4")
    assert work(step("divergence", "divergence X"), settings, SIZES) == Work(
        "score", 2 * 20 * (10 + 6 * 5), 2 * 20 * 30 * 4
    )
    assert work(step("divergence", "divergence SFT"), settings, SIZES).amount == 20 * (10 + 6 * 5)
    assert work(step("evaluate", "evaluate X 1/4"), settings, SIZES).amount == 20 * 6 * 5
    assert work(step("evaluate", "evaluate X"), settings, SIZES).amount == 20 * 13 * 5
    assert work(step("align"), settings, SIZES).disk == 4 * 4000


def test_work_of_baselines_and_budgets() -> None:
    align, generate = step("align"), step("generate")
    assert work(align, parts("method=sft_continued"), SIZES).amount == 4 * 100 * (10 + 5)
    assert work(generate, parts("method=dpo_std"), SIZES) == Work(None, 0, 100 * 1 * 5 * 8)  # nothing is sampled
    assert work(step("reference"), parts("method=dpo_std"), SIZES).amount == 100 * (10 + 2 * 5)
    assert work(step("embed"), parts("method=spin"), SIZES).amount == 200
    assert work(align, parts("trainer.tokens=777"), SIZES).amount == 777
    assert work(align, parts("trainer.epochs=3", "negatives=1"), SIZES).amount == 3 * 100 * (10 + 2 * 5)
    assert work(generate, parts("generator.prompts=40"), SIZES).amount == 40 * 64 * 5
    assert work(step("sft"), parts("sft=none"), SIZES).amount == 0
    rewarded = parts(
        "+benchmark@evaluation.benchmarks.reward=reward", "evaluation.benchmarks.reward.reward_model.path=x"
    )
    assert work(step("benchmark", "reward SFT"), rewarded, SIZES) == Work("score", 20 * 2 * 15, 0)
    assert work(step("benchmark", "pairwise SFT"), rewarded, SIZES) == Work(None, 0, 0)


def test_work_of_benchmark_with_own_questions_counts_turns() -> None:
    """There are 80 questions of two turns. Half of them have a temperature above 0 and get three samples."""
    name = "evaluation.benchmarks.mt_bench"
    settings = parts(f"+benchmark@{name}=mt_bench", f"{name}.samples=3", f"{name}.judge.model=x")
    assert work(step("answers", "mt_bench answers SFT"), settings, SIZES) == Work("generate", (40 + 40 * 3) * 2 * 5, 0)


def test_work_and_hours_of_unknown_sizes_are_none() -> None:
    nothing = Sizes(None, None, None, None, None)
    assert work(step("generate"), parts(), nothing) == Work("generate", None, None)
    assert work(step("align"), parts(), nothing) == Work("train", None, None)
    assert hours(Work("train", None, None), {"train": 1.0}) is None
    assert hours(Work("train", 100, 0), {"score": 1.0}) is None
    assert hours(Work(None, 0, 0), {}) == 0
    assert hours(Work("train", 36000, 0), {"train": 5.0}) == 2


def test_sizes_prefer_explicit_values_and_stored_candidates() -> None:
    """A prompt of 16 characters and a target of 24 are estimated as 4 and 6 tokens."""
    settings = parts()
    examples = [example(str(i), "x" * 16, "y" * 24) for i in range(7)]
    evaluated = [example(str(i), "x", "y") for i in range(5)]
    planned = Planned(
        with_splits(settings, examples, evaluated),
        [step("generate", summary={"tokens_per_response": 9.5}), step("align")],
        "",
    )
    sizes = sizes_of(planned)
    assert (sizes.prompts, sizes.evaluated, sizes.prompt_tokens, sizes.response_tokens) == (7, 5, 4, 9.5)
    unsampled = Planned(planned.parts, [step("generate")], "")
    assert sizes_of(unsampled).response_tokens == 6
    explicit = sizes_of(unsampled, prompts=1000, response_tokens=None, parameters=5.0)
    assert (explicit.prompts, explicit.response_tokens, explicit.parameters) == (1000, 6, 5.0)
    unreadable = sizes_of(Planned(settings, [], ""))
    assert (unreadable.prompts, unreadable.prompt_tokens) == (None, None)


def with_splits(settings: Any, train: list[Any], test: list[Any]) -> Any:
    return replace(settings, splits={"train": train, "validation": [], "test": test})


def test_parameters_of_local_configs_and_known_models() -> None:
    """The expected counts hold embeddings, output layer and, for each layer, attention, MLP and two norms."""
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    mistral = 2 * 32000 * 4096 + 32 * layer + 4096
    assert parameters(parts("+experiment=paper", "data=hh_rlhf")) == mistral
    assert parameters(parts("model=hf", "model.path=somebody/something")) is None
    built_in = 2048 * 64 + 3 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
    assert parameters(parts()) == built_in


# --- speeds


def test_measured_speeds_of_a_finished_run_are_per_device(tmp_path: Path) -> None:
    def stage(name: str, seconds: float, **summary: float) -> dict[str, Any]:
        return {"name": name, "seconds": seconds, "resumed": False, "summary": summary}

    result: Any = {
        "config": {"hardware": {"devices": 4, "num_nodes": 2}},
        "histories": {"align": [{"tokens_per_second": value} for value in (1.0, 800.0, 900.0)], "sft": []},
        "stages": [
            stage("generate", 10, tokens=5000, responses=90, prompts=10),
            stage("embed", 4),
            stage("reference", 2, tokens=600),
            stage("filter", 1),
        ],
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "generate": 500, "embed": 25, "score": 300}
    result["config"]["engine"] = {"actors": [1, 5], "gpus_per_actor": None}  # of the Ray engine
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "generate": 100, "embed": 5, "score": 60}
    del result["config"]["engine"]
    result["stages"][0]["resumed"] = True  # its seconds cover the last attempt only
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert measured(tmp_path) == {"train": 100, "score": 300}
    with pytest.raises(UserError, match=r"--measured .*no result\.json"):
        measured(tmp_path / "none")


def test_throughput_file_entries_have_sources() -> None:
    file = ROOT / "studies" / "paper" / "throughput.yaml"
    entries = yaml.safe_load(file.read_text())
    for entry in entries:
        assert from_file(file, entry["hardware"]).keys() <= set(SPEEDS)
        assert (ROOT / entry["source"].split(",")[0]).is_file()
    with pytest.raises(UserError, match=r"--hardware h100.*throughput\.yaml.*cpu-2"):
        from_file(file, "h100")


def test_speeds_without_source_or_of_unknown_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "speeds.yaml"
    file.write_text(yaml.safe_dump([{"hardware": "mine", "speeds": {"train": 1}}]))
    with pytest.raises(UserError, match=r"mine.*source"):
        from_file(file, "mine")
    for wrong in ({"trian": 1.0}, {"train": 0}, {"train": "fast"}):
        with pytest.raises(UserError, match="train, generate, score, embed"):
            checked(wrong)
