"""Compare the work of stages with values by hand, and test sizes that are unknown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfcontrast.cli.plan import print_plan
from selfcontrast.config import GROUPS, assemble, build
from selfcontrast.planning.plan import Planned, PlannedStage
from selfcontrast.planning.work import Sizes, Work, parameters, sizes_of, work
from selfcontrast.report.text import disk
from selfcontrast.store import Artifact
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


def test_work_of_a_pool_over_iterations_grows() -> None:
    settings = parts("iterations=3", "negatives_over_iterations=all")
    for label, pool in (("iteration-1/embed", 64), ("iteration-2/embed", 128), ("embed", 192)):
        assert work(step("embed", label), settings, SIZES).amount == 100 * (pool + 1)
    assert work(step("gather", "iteration-2/gather"), settings, SIZES) == Work(None, 0, 100 * 128 * 5 * 8)
    assert work(step("embed", "iteration-2/embed"), parts("iterations=3"), SIZES).amount == 100 * 65
    assert work(step("score"), parts(), SIZES) == Work("score", 100 * 65 * 15, 0)


def test_work_of_benchmark_with_own_questions_counts_turns() -> None:
    """There are 80 questions of two turns. Half of them have a temperature above 0 and get three samples."""
    name = "evaluation.benchmarks.mt_bench"
    settings = parts(f"+benchmark@{name}=mt_bench", f"{name}.samples=3", f"{name}.judge.model=x")
    assert work(step("answers", "mt_bench answers SFT"), settings, SIZES) == Work("generate", (40 + 40 * 3) * 2 * 5, 0)


def test_work_of_unknown_sizes_is_none() -> None:
    nothing = Sizes(None, None, None, None, None)
    assert work(step("generate"), parts(), nothing) == Work("generate", None, None)
    assert work(step("align"), parts(), nothing) == Work("train", None, None)


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


def test_work_is_written_with_three_digits_and_its_unit() -> None:
    texts = {Work("train", 3_120_000, 0).text, Work("embed", 950, 0).text, Work("score", None, None).text}
    assert texts == {"3.12 M tokens", "950 texts", "?"}
    assert Work(None, 0, 0).text == ""
    assert [disk(size) for size in (None, 0, 10, 14.5e9, 2e12)] == ["?", "", "< 1 MB", "14.5 GB", "2 TB"]


def test_plan_of_the_command_lists_work_or_the_stored_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    stored = Artifact("sft", "0f", Path("none"), {"summary": {}}, cached=True)
    steps = [PlannedStage("sft", stored), step("generate"), step("filter")]
    settings = with_splits(parts(), [example(str(i), "x" * 16, "y" * 24) for i in range(7)], [example("e", "x", "y")])
    print_plan(Planned(settings, steps, ""))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:6]] == [
        ["sft", "sft/0f"],
        ["generate", "no", "2.69", "k", "tokens", "<", "1", "MB"],  # 7 * 64 * 6
        ["filter", "no"],
        ["2", "of", "3", "stages", "to", "do"],
    ]
    assert "Assumed: 7 training prompts of 4 tokens and responses of 6 " in lines[6]
    print_plan(Planned(parts(), steps, "no data"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["generate", "no", "?", "?"]
    assert len(lines) == 6
