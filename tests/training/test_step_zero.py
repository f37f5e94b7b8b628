"""The start of preference training: its loss is that of margins of 0, and a reference that is another's is noticed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from selfcontrast.objectives import Objective, Signals
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import Stored
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SelfContrastDPO
from selfcontrast.training.reference import score_groups
from selfcontrast.training.step_zero import ERRORS, explained
from tiny import groups, hardware, llama, objective_of, optim

K = 3
GROUPS = groups(8, negatives=K)
# By objective file and changes to it, the loss of a group whose margins are 0, by hand.
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
    """Of a training whose stored reference is less than the policy by these nats, per target and per negative."""
    policy, own, how = llama(), hardware(max_tokens_per_microbatch=60), optim(batch_size=8, epochs=1, lr=1e-9)
    prepare(policy, GROUPS, own)
    scored = score_groups(policy, GROUPS, own)
    reference = {name: torch.tensor([sum(tokens) for tokens in rows]) for name, rows in scored.items()}
    for scores in reference.values():
        scores -= torch.tensor([shift[0], *[shift[1]] * K])
    records: list[Record] = []
    module = SelfContrastDPO(
        policy, how, 1, own.logits_chunk, records.append, objective, Stored(reference, signals or {})
    )
    fit(module, StepData(GROUPS, [], how, own, 0), folder, "test")
    return records[0]


@pytest.mark.parametrize("name", AT_ZERO)
def test_the_first_loss_is_the_objectives_at_margins_of_zero(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes, expected = AT_ZERO[name]
    caplog.set_level("INFO", "selfcontrast")
    record = first_record(tmp_path, objective_of(name, nll_weight=0.0, **changes), (0.0, 0.0))
    assert record["step0/expected_loss"] == pytest.approx(expected, abs=1e-5)
    assert record["step0/loss"] == pytest.approx(expected, rel=1e-3)
    (line,) = [r for r in caplog.records if "at step 0" in r.getMessage()]
    assert line.levelname == "INFO"


def test_the_targets_own_likelihood_belongs_to_the_expected_loss(tmp_path: Path) -> None:
    record = first_record(tmp_path, objective_of("self_contrast", nll_weight=1.0), (0.0, 0.0))
    nll = -record["chosen_log_prob_per_token"]
    assert record["step0/expected_loss"] == pytest.approx(math.log(2) + nll, abs=1e-4)
    assert record["step0/loss"] == pytest.approx(record["step0/expected_loss"], abs=1e-4)


def test_an_objective_that_ranks_rewards_has_no_loss_of_its_own_at_ties(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LiPO-lambda's weights are of ranks, which rounding decides where all rewards are 0: margins alone are checked."""
    signals = {group.id: Signals(torch.linspace(1, 0, K + 1), torch.zeros(K)) for group in GROUPS}
    record = first_record(tmp_path, objective_of("lipo_lambda"), (0.0, 0.0), signals)
    assert record["step0/expected_loss"] == record["step0/loss"]
    assert record["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_an_objective_without_a_reference_has_no_such_start(tmp_path: Path) -> None:
    assert not [name for name in first_record(tmp_path, objective_of("simpo"), (0.0, 0.0)) if "step0" in name]


def test_a_shift_of_all_scores_is_warned_of_though_margins_are_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NCA looks at rewards, not at their differences."""
    record = first_record(tmp_path, objective_of("nca", beta=0.1, nll_weight=0.0), (1.0, 1.0))
    assert record["step0/margin_std"] == pytest.approx(0, abs=1e-4)
    (line,) = [r.getMessage() for r in caplog.records if "at step 0" in r.getMessage()]
    assert "more than noise explains" in line
    assert "recompute=[reference]" in line


def test_noise_explains_what_points_in_no_direction() -> None:
    drawn = torch.randn(400, generator=torch.Generator().manual_seed(0))
    drawn = (drawn - drawn.mean()) / drawn.std()
    for mean, is_noise in [(0.9 * ERRORS / 20, True), (1.1 * ERRORS / 20, False)]:  # 20: the root of 400
        values = drawn + mean
        assert explained(float(values.mean()), float(values.square().mean()), 400, math.log(2)) == is_noise
    assert explained(9e-4, 9e-4**2, 1, math.log(2))
    assert not explained(2e-3, 2e-3**2, 400, math.log(2))
    assert explained(2e-3, 2e-3**2, 400, 25.0)  # a thousandth of IPO's loss
    assert not explained(math.nan, math.nan, 400, math.log(2))
