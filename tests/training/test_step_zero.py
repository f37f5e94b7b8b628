"""Test step 0 of preference training: the loss at margins of 0, and detection of a wrong reference."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcontrast.objectives import Objective, Signals
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.packed_module import Record
from selfcontrast.training.reference import score_groups
from selfcontrast.training.step_zero import MAX_ERRORS, within_noise
from tiny import groups, hardware, llama, objective_of, optim

K = 3
GROUPS = groups(8, negatives=K)
# Per objective file: changes to its settings, and the loss at margins of 0, computed by hand.
AT_ZERO: dict[str, tuple[dict[str, Any], float]] = {
    "self_contrast": ({}, math.log(2)),
    "robust": ({"label_smoothing": 0.1}, math.log(2)),
    "ipo": ({"beta": 0.1}, 25.0),
    "hinge": ({}, 1.0),
    "mean_margin": ({}, math.log(2)),
    "hardest": ({}, math.log(2)),
    "softmax": ({"rank_weights": None}, math.log(1 + K)),
    "nca": ({"rank_weights": None}, 2 * math.log(2)),
    "plackett_luce": ({}, math.log(math.factorial(K + 1))),
}


def first_record(
    folder: Path, objective: Objective, shift: tuple[float, float], signals: Mapping[str, Signals] | None = None
) -> Record:
    """Return the first record of a training run. The reference is `shift` (target, negative) nats below the policy."""
    policy, settings = llama(), optim(batch_size=8, epochs=1, lr=1e-9)
    hardware_config = hardware(max_tokens_per_microbatch=60)
    prepare(policy, GROUPS, hardware_config)
    scored = score_groups(policy, GROUPS, hardware_config)
    reference = {name: torch.tensor([sum(tokens) for tokens in rows]) for name, rows in scored.items()}
    for scores in reference.values():
        scores -= torch.tensor([shift[0], *[shift[1]] * K])
    records: list[Record] = []
    module = SelfContrastDPO(
        policy,
        settings,
        1,
        hardware_config.logits_chunk,
        records.append,
        objective,
        StoredScores(reference, signals or {}),
    )
    fit(module, StepData(GROUPS, [], settings, hardware_config, 0), folder, "test")
    return records[0]


@pytest.mark.parametrize("name", AT_ZERO)
def test_step_zero_loss_equals_objective_at_zero_margins(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, expected = AT_ZERO[name]
    caplog.set_level("INFO", "selfcontrast")
    record = first_record(tmp_path, objective_of(name, nll_weight=0.0, **changes), (0.0, 0.0))
    assert record["step0/expected_loss"] == pytest.approx(expected, abs=1e-5)
    assert record["step0/loss"] == pytest.approx(expected, rel=1e-3)
    (line,) = [r for r in caplog.records if "at step 0" in r.getMessage()]
    assert line.levelname == "INFO"


def test_step_zero_expected_loss_includes_nll(tmp_path: Path) -> None:
    record = first_record(tmp_path, objective_of("self_contrast", nll_weight=1.0), (0.0, 0.0))
    nll = -record["chosen_log_prob_per_token"]
    assert record["step0/expected_loss"] == pytest.approx(math.log(2) + nll, abs=1e-4)
    assert record["step0/loss"] == pytest.approx(record["step0/expected_loss"], abs=1e-4)


def test_step_zero_objective_that_ranks_rewards_checks_margins_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LiPO-lambda weights pairs by ranks. At rewards of 0 rounding decides the ranks, so only margins are checked."""
    signals = {group.id: Signals(torch.linspace(1, 0, K + 1), torch.zeros(K)) for group in GROUPS}
    record = first_record(tmp_path, objective_of("lipo_lambda"), (0.0, 0.0), signals)
    assert record["step0/expected_loss"] == record["step0/loss"]
    assert record["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_step_zero_without_reference_is_not_recorded(tmp_path: Path) -> None:
    assert not [name for name in first_record(tmp_path, objective_of("simpo"), (0.0, 0.0)) if "step0" in name]


def test_step_zero_shifted_scores_with_zero_margins_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NCA's loss depends on the rewards themselves, not on their differences."""
    record = first_record(tmp_path, objective_of("nca", beta=0.1, nll_weight=0.0), (1.0, 1.0))
    assert record["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    (line,) = [r.getMessage() for r in caplog.records if "at step 0" in r.getMessage()]
    assert "recompute=[reference]" in line


def test_within_noise_accepts_difference_below_max_errors() -> None:
    drawn = torch.randn(400, generator=torch.Generator().manual_seed(0))
    drawn = (drawn - drawn.mean()) / drawn.std()
    for mean, is_noise in [(0.9 * MAX_ERRORS / 20, True), (1.1 * MAX_ERRORS / 20, False)]:  # 20 is the root of 400
        values = drawn + mean
        assert within_noise(float(values.mean()), float(values.square().mean()), 400, math.log(2)) == is_noise
    assert within_noise(9e-4, 9e-4**2, 1, math.log(2))
    assert not within_noise(2e-3, 2e-3**2, 400, math.log(2))
    assert within_noise(2e-3, 2e-3**2, 400, 25.0)  # below a thousandth of IPO's loss
    assert not within_noise(math.nan, math.nan, 400, math.log(2))
