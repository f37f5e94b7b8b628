"""Check the theory's report for a clear gradient, and for a gradient that cannot be told apart from zero."""

import math
from pathlib import Path

import numpy as np
import pytest

from studies.gradient_error.bandit import BanditSettings
from studies.gradient_error.experiment import Theory
from studies.gradient_error.measure import GradientError, ResponseGradients, on_bandit, on_model
from studies.gradient_error.report import headline, print_theory, sentences, write_theory

BANDIT = BanditSettings(6, 2, 0.3, 0.5, 0.2, [1, 4], 1, 50)
SETTINGS = GradientError(12, 6, None, [1, 2, 4], [4], 20, 0, 0.95, BANDIT)


def make_theory(gradient: float) -> Theory:
    """Return results in which targets' gradients lie `gradient` above those of samples, which have unit variance."""
    rng = np.random.default_rng(3)
    gradients = rng.standard_normal((12, 7, 4))
    gradients[:, 0] += gradient
    flat = np.zeros((12, 7))
    scores = rng.integers(0, 2, (12, 7)).astype(float)
    kept = rng.random((12, 6)) < 0.5
    data = ResponseGradients(gradients, flat, flat, scores, kept, [np.arange(3)] * 12, (20.0, 10.0))
    return Theory(on_bandit(BANDIT, [1, 2, 4]), on_model(SETTINGS, data, 0.5), [], {}, {})


@pytest.mark.parametrize("gradient", [3.0, 0.0])
def test_report_has_all_tables(gradient: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theory = make_theory(gradient)
    write_theory(theory, tmp_path)
    print_theory(theory, tmp_path)
    printed = capsys.readouterr().out
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "theory.md").read_text()
    for part in ("Direction of the gradient", "All responses as negatives", "Bandit"):
        assert part in page
        assert part in text
        assert part in printed
    assert headline(theory) in printed
    assert "inf" not in text.replace("infer", "")


def test_sentences_say_that_gradient_may_be_zero() -> None:
    theory = make_theory(0.0)
    theory.model["all"] |= {"squared": -0.1, "prompts_needed": dict.fromkeys(("1", "2", "4"), math.inf)}
    assert any("12 prompts" in sentence and "zero" in sentence for sentence in sentences(theory))


def test_sentences_give_the_prompts_needed_per_k() -> None:
    theory = make_theory(3.0)
    theory.model["all"] |= {"squared": 2.0, "prompts_needed": {"1": 10.2, "2": 8.0, "4": 1234.0}}
    assert any(
        "11 prompts at K = 1" in sentence and "1,234 prompts at K = 4" in sentence for sentence in sentences(theory)
    )
