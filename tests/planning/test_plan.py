"""Test plans of jobs: their stages, the keys that jobs share, and data that cannot be read."""

from pathlib import Path

import pytest

from selfcontrast.config import configure
from selfcontrast.planning.plan import DataReader, plan
from studies.paper.terminal import print_plan
from test_config import composed

SMALL = ("data.train=64", "data.test=16", "data.validation=16", "tracking=none")
ITERATION_STAGES = ("generate", "embed", "filter", "reference", "align")


def test_plan_lists_stages_of_pipeline_and_writes_nothing(tmp_path: Path) -> None:
    cfg = composed(*SMALL, "iterations=2", f"store={tmp_path / 'store'}", f"output={tmp_path / 'out'}")
    planned = plan(cfg, DataReader())
    assert [step.label for step in planned.steps] == [
        *("data", "contamination", "sft", "evaluate SFT", "divergence SFT"),
        *(f"iteration-1/{stage}" for stage in ITERATION_STAGES),
        *("evaluate Self-Contrast iteration 1", "divergence Self-Contrast iteration 1"),
        *ITERATION_STAGES,
        *("evaluate Self-Contrast", "divergence Self-Contrast"),
        *(
            f"dialogues {prefix}{system}"
            for prefix in ("answers ", "")
            for system in ("SFT", "Self-Contrast iteration 1", "Self-Contrast")
        ),
        *("pairwise Self-Contrast iteration 1", "pairwise Self-Contrast"),
    ]
    assert not any(step.artifact.cached for step in planned.steps)
    assert planned.obstacle == ""
    assert list(tmp_path.iterdir()) == []


def keys_of(tmp_path: Path, *overrides: str) -> dict[str, str]:
    cfg = composed(*SMALL, *overrides, f"store={tmp_path / 'store'}", "output=out")
    planned = plan(cfg, DataReader())
    assert planned.obstacle == ""
    return {step.label: step.artifact.key for step in planned.steps}


def test_plan_iteration_setting_changes_keys_of_second_iteration(tmp_path: Path) -> None:
    """The first iteration has the keys of a job with one iteration. A setting changes only keys of the second."""
    iterations = ("iterations=2", "generator.prompts=32")
    first = {f"iteration-1/{stage}" for stage in ITERATION_STAGES} | {"evaluate Self-Contrast iteration 1"}
    usual, single = keys_of(tmp_path, *iterations), keys_of(tmp_path, "generator.prompts=32")
    first_keys = {usual[f"iteration-1/{stage}"] for stage in ITERATION_STAGES}
    assert first_keys == {single[stage] for stage in ITERATION_STAGES}
    for setting, same in (
        ("reference_over_iterations=initial", {"generate", "embed", "filter"}),
        ("prompts_over_iterations=disjoint", set[str]()),
        ("negatives_over_iterations=all", set[str]()),  # it samples with other random numbers
    ):
        keys = keys_of(tmp_path, *iterations, setting)
        assert {label for label in first | set(ITERATION_STAGES) if keys[label] == usual[label]} == first | same
        assert set(keys) - set(usual) == ({"gather"} if setting == "negatives_over_iterations=all" else set())
        assert keys_of(tmp_path, "generator.prompts=32", setting) == single


def test_plan_jobs_with_different_k_share_stages_before_align(tmp_path: Path) -> None:
    read = DataReader()
    first, second = (plan(composed(*SMALL, f"negatives={k}", f"store={tmp_path}", "output=out"), read) for k in (1, 8))
    keys = [{step.label: step.artifact.key for step in planned.steps} for planned in (first, second)]
    differ = {label for label, key in keys[0].items() if keys[1][label] != key}
    assert differ == {label for label in keys[0] if label == "align" or label.endswith("Self-Contrast")}
    assert len(read.cache) == 1


def test_plan_reference_setting_changes_only_reference_and_later_stages(tmp_path: Path) -> None:
    read = DataReader()
    plans = {
        name: {step.label: step.artifact.key for step in plan(cfg, read).steps}
        for name, cfg in (
            (name, composed(*SMALL, f"reference={name}", f"store={tmp_path}", "output=out"))
            for name in ("stored", "none", "sampler")
        )
    }
    usual = plan(composed(*SMALL, f"store={tmp_path}", "output=out"), read)
    assert plans["stored"] == {step.label: step.artifact.key for step in usual.steps}
    assert "reference" not in plans["none"]
    assert plans["sampler"]["reference"] != plans["stored"]["reference"]
    assert len({keys["align"] for keys in plans.values()}) == 3
    for label in ("sft", "generate", "embed", "filter"):
        assert len({keys[label] for keys in plans.values()}) == 1


def test_plan_checkpoints_add_stages_and_keep_keys(tmp_path: Path) -> None:
    """No benchmark runs on checkpoints. Stages that do not depend on training keep their keys."""
    read = DataReader()
    small = (*SMALL, f"store={tmp_path}", "output=out")
    none, four = (
        {step.label: step.artifact.key for step in plan(composed(*small, *more), read).steps}
        for more in ((), ("evaluation.checkpoints=4",))
    )
    added = [label for label in four if label not in none]
    assert added == [f"{stage} Self-Contrast {i}/4" for i in (1, 2, 3) for stage in ("evaluate", "divergence")]
    assert {label for label in none if none[label] != four[label]} == {
        label for label in none if label == "align" or label.endswith("Self-Contrast")
    }
    assert len(set(four.values())) == len(four)


def test_plan_missing_data_is_an_obstacle(tmp_path: Path) -> None:
    cfg = composed("data=hub", "data.train.path=nowhere.jsonl", "tracking=none", f"store={tmp_path}", "output=out")
    with pytest.raises(Exception, match="does not exist"):
        configure(cfg)
    cfg = composed("data=hub", "data.train.path=a/b", "tracking=none", f"store={tmp_path}", "output=out")
    planned = plan(cfg, DataReader())
    assert planned.obstacle.startswith("data.train.revision=None")
    assert "align" in [step.label for step in planned.steps]
    assert planned.parts.splits["train"] == []


def test_plan_failed_check_is_an_obstacle(tmp_path: Path) -> None:
    cfg = composed(*SMALL, "negatives=17", f"store={tmp_path}", "output=out")
    assert plan(cfg, DataReader()).obstacle.startswith("negatives=17 exceeds filter.max_negatives=16")


def test_plan_command_prints_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read, printed_keys = DataReader(), set[str]()
    jobs = [plan(composed(*SMALL, f"negatives={k}", f"store={tmp_path}", "output=out"), read) for k in (1, 8)]
    print_plan("own", jobs, {"train": 1e9}, printed_keys, {"prompts": 3600})
    output = capsys.readouterr().out
    assert "own: 2 jobs" in output
    assert output.count("sft ") == 1
    assert "align, K = 1" in output
    assert "align, K = 8" in output
    assert "3,600 training prompts" in output
    assert "no measured speed for generate, score, embed" in output
    print_plan("again", jobs, {"train": 1e9}, printed_keys, {"prompts": 3600})
    again = capsys.readouterr().out
    assert "to do" not in again.replace("0 of", "").replace("to do", "", 1)
    assert "0 of" in again
