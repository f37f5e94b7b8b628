"""Fixtures of the reports' tests: a small result with hand-written numbers, and a sweep of such results."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hand_written import interval, rows
from selfcontrast.results import RESULT, Result

UNTRACKED = {"_target_": "selfcontrast.tracking.tracker.NoTracking"}
Rows = dict[str, dict[str, float]]


def stage(name: str, seconds: float, summary: dict[str, Any], cached: bool = False) -> dict[str, Any]:
    location = {"key": "0f", "path": f"store/{name}/0f"}
    return {"name": name, "seconds": seconds, "cached": cached, "resumed": False, "summary": summary, **location}


FILTER_SUMMARY = {
    "prompts": 50,
    "prompts_used": 49,
    "prompts_dropped": 1,
    "prompts_dropped_for_distinct": 1,
    "prompts_dropped_for_kept": 0,
    "prompts_refilled": 0,
    "candidates": 400,
    "distinct_per_prompt": 7.0,
    "duplicate_share": 0.1,
    "empty_share": 0.02,
    "copies_of_target_share": 0.005,
    "false_negatives_before": 0.123,
    "false_negatives_after": 0.045,
    "characters_targets": [12.0, 1234.5, 5000.0],
    "self_bleu_negatives": 0.321,
    "tokens_left": None,
}
VALIDATION = {"step": 59, "val_loss": 0.1}
LM_EVAL = {"SFT": {"target_choice": {"acc": 0.911}}, "Self-Contrast": {"target_choice": {"acc": 0.922}}}
SAMPLES = [
    {
        "category": "<i>maths</i>",
        "prompt": [{"role": "user", "content": "What is 2 < 3?"}],
        "target": "True & so on.",
        "turns": [],
        "answers": {
            "SFT": [{"text": "<script>alert(1)</script>", "score": 0.25}],
            "Self-Contrast": [{"text": "Yes.", "score": 1.0}],
        },
    },
    {
        "category": "",
        "prompt": [{"role": "user", "content": "First."}],
        "target": "Last target.",
        "turns": ["Turn one asks.", "Turn two asks."],
        "answers": {"SFT": [{"text": "One.", "score": 0.5}], "Self-Contrast": []},
    },
]


def build(
    sft: float = 0.6,
    policy: float = 0.7,
    control: float = 0.65,
    half: float = 0.04,
    p: float = 0.002,
    k: int = 4,
    seed: int = 1,
    config: dict[str, Any] | None = None,
    tokens: int = 1000,
) -> Result:
    return Result(
        name=f"self-contrast K={k} s{seed}",
        negatives=k,
        seed=seed,
        value=policy,
        policy="store/align/0f/model",
        comparison={
            "measure": "score",
            "rows": rows(sft, policy, control, half, p),
            "categories": [
                {"system": system, "category": "<b>bold</b>", "mean": interval(0.5, 0.1)}
                for system in ("SFT", "Self-Contrast")
            ],
            "likelihood": [{"system": "SFT", "log_prob_per_token": interval(-0.875, 0.01)}],
            "contamination": {
                "benchmark": "test",
                "prompts": 20,
                "flagged": 1,
                "examples": [{"prompt": "<u>seen</u>", "match": "<s>told</s>", "containment": 0.9, "similarity": None}],
                "without": rows(sft - 0.25, policy - 0.3, control, half, 0.5)[:2],
            },
        },
        stages=[
            stage("sft", 225.0, {}, cached=True),
            stage("filter", 3.0, FILTER_SUMMARY),
            stage("align", 61.0, {"prompts": 49, "negatives_per_prompt": k - 0.5, "tokens": tokens}),
        ],
        histories={
            "sft": [*({"step": i, "loss": 2 / i, "grad_norm": 1.0} for i in range(1, 60)), VALIDATION],
            "align": [
                {
                    "step": 1,
                    "loss": 0.69,
                    "step0/loss": 0.69,
                    "step0/expected_loss": 0.6931,
                    "step0/margin_std": 0.002,
                    "margin": 0.0,
                    "accuracy": 0.5,
                    "chosen_reward": 0.0,
                    "accuracy_rank_1": 0.25,
                    "accuracy_rank_2": 0.75,
                    "margin_rank_1": 0.0,
                    "margin_rank_2": 0.1,
                    "tokens_per_second": 12345.0,
                    "prompts_per_second": 3.25,
                    "tflops": 0.125,
                    "mfu": 0.375,
                    "peak_memory_gib": 1.75,
                }
            ],
        },
        similarities={
            "edges": [-1.0, -0.5, 0.0, 0.5, 1.0],
            "candidates": [0, 0, 2, 1],
            "negatives": [0, 0, 2, 0],
            "cuts": {"low": [], "high": [0.4, 0.45, 0.5]},
            "signals": [
                {"signal": "similarity", "auc": 0.7516, "false_negatives": [0.239, 0.141, 0.0481, None]},
                {"signal": "rank_sum", "auc": None, "false_negatives": [0.25, 0.25, 0.25, 0.25]},
            ],
        },
        lm_eval=LM_EVAL,
        samples=SAMPLES,
        negatives_shown=[],
        config={"negatives": k, "seed": seed, "tracking": UNTRACKED, **(config or {"note": "a: <script>b</script>"})},
        provenance={"python": "3.11.7", "packages": {"torch": "2.13.0"}, "commit": "abc123"},
    )


@pytest.fixture
def make() -> Callable[..., Result]:
    return build


@pytest.fixture
def proxy() -> Result:
    """Return a result without a verifier."""
    scored = build()
    return replace(scored, comparison={**scored.comparison, "measure": "similarity"}, samples=[])


@pytest.fixture
def unbounded() -> Result:
    """Return a result whose intervals are unknown, as with a single prompt."""
    scored = json.loads(json.dumps(asdict(build())))
    for row in scored["comparison"]["rows"]:
        for name in ("mean", "difference", "win_rate"):
            if name in row:
                row[name] |= {"low": float("nan"), "high": float("nan")}
    return Result(**scored)


@pytest.fixture
def write() -> Callable[[Path, Result], None]:
    """Return a function that writes a result as a job does."""

    def write_result(folder: Path, result: Result) -> None:
        folder.mkdir(parents=True)
        (folder / RESULT).write_text(json.dumps(asdict(result)))

    return write_result


@pytest.fixture
def sweep_folder(write: Callable[[Path, Result], None], tmp_path: Path) -> Path:
    """Write jobs 0, 1, 2 and 10, and return their folder. Job 1 failed. The jobs are not in the order of K."""
    write(tmp_path / "0", build(policy=0.7, k=4))
    write(tmp_path / "2", build(policy=0.65, half=0.1, p=0.4, k=1))
    write(tmp_path / "10", build(policy=0.5, k=16))
    for job, k in (("0", 4), ("1", 99), ("2", 1), ("10", 16)):
        hydra = tmp_path / job / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "overrides.yaml").write_text(f"- trainer.epochs=1\n- negatives={k}\n")
    return tmp_path
