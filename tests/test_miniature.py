"""The miniature: every method composes, and differs from Self-Contrast only in its defining settings."""

import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from jobs import ROOT
from selfcontrast.config import configure
from selfcontrast.errors import UserError
from selfcontrast.filters.select import Filter
from test_config import composed

CLEAN = "data.noise=0.0"
TOKENS = "trainer.tokens=538702"  # docs/miniature.md
OTHERS = ("sft", "best_vs_worst", "best_vs_below_mean", "rft", "scpo")  # no baselines of the paper
ARMS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml") if file.stem not in OTHERS)
SMALL = ("data.train=64", "data.test=16", "data.validation=16", "output=out")
SAME = ("model", "sft", "encoder", "trainer", "evaluation", "engine", "hardware", "adapter")
ONE_NEGATIVE = ("dpo_std", "spin", "equal_tokens")


def chosen(arm: str) -> list[str]:
    return ["+experiment=miniature", f"method={arm}", *([TOKENS] if arm == "equal_tokens" else [])]


def settings(arm: str, *overrides: str) -> dict[str, Any]:
    found = OmegaConf.to_container(composed(*chosen(arm), "output=out", *overrides), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_passes_the_checks_before_compute(arm: str) -> None:
    for k in (1, 16) if arm == "self_contrast" else (None,):
        parts = configure(composed(*chosen(arm), *SMALL, *([f"negatives={k}"] if k else [])))
        assert parts.generator.check(parts.splits["train"]) is None


@pytest.mark.parametrize("arm", ARMS)
def test_the_same_hyper_parameters_for_every_arm(arm: str) -> None:
    own, method = settings(arm), settings("self_contrast")
    if arm == "equal_tokens":
        assert own["trainer"].pop("tokens") is not None
        method["trainer"].pop("tokens")
    for part in SAME:
        assert own[part] == method[part], part
    assert own["data"] == method["data"]
    assert own["generator"]["prompts"] == method["generator"]["prompts"]
    assert (own["negatives"] == 1) == (arm in ONE_NEGATIVE)


def test_the_clean_arms_differ_in_the_noise_alone() -> None:
    for arm in ("self_contrast", "sft_continued"):
        one, other = settings(arm, CLEAN), settings(arm)
        assert (one["data"].pop("noise"), other["data"].pop("noise")) == (0.0, 0.15)
        assert one == other


def test_the_issues_command_is_the_method_with_any_k_and_seed() -> None:
    short = composed("+experiment=miniature", "negatives=16", "seed=3", "output=out")
    long = composed(*chosen("self_contrast"), "negatives=16", "seed=3", "output=out")
    assert short == long
    assert (short.negatives, short.seed, short.generator.seed) == (16, 3, 3)


def test_every_k_is_real() -> None:
    """The filter keeps 16 of 64 distinct candidates, and still does of 58."""
    parts = configure(composed("+experiment=miniature", *SMALL))
    selection: Filter = parts.filter
    assert selection.selector.max_kept(58) == selection.max_negatives == 16
    assert parts.generator.samples == 64
    with pytest.raises(UserError, match=r"negatives=17 is more than filter\.max_negatives"):
        configure(composed("+experiment=miniature", *SMALL, "negatives=17"))


def test_the_documented_commands_name_every_arm() -> None:
    text = (ROOT / "docs" / "miniature.md").read_text()
    given = [found.split(",") for found in re.findall(r"\+experiment=miniature method=([\w,]+)", text)]
    assert set(ARMS) <= {arm for arms in given for arm in arms} | {"self_contrast"}
    assert f"method=equal_tokens {TOKENS} " in text
    assert f"{CLEAN} " in text
    assert "python train.py -m +experiment=miniature negatives=1,2,4,8,16 seed=1,2,3,4,5" in text
