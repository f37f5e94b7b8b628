"""Check the experiment miniature: every method composes and has the hyperparameters of Self-Contrast."""

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
TOKENS = "trainer.tokens=538702"  # the number is in docs/miniature.md
OTHERS = (
    "sft",
    "best_vs_worst",
    "best_vs_below_mean",
    "rft",
    "scpo",
)  # docs/miniature.md has no command for these methods
METHODS = sorted(file.stem for file in (ROOT / "conf" / "method").glob("*.yaml") if file.stem not in OTHERS)
SMALL = ("data.train=64", "data.test=16", "data.validation=16", "output=out")
EQUAL_PARTS = ("model", "sft", "encoder", "trainer", "evaluation", "engine", "hardware", "adapter")
ONE_NEGATIVE = ("dpo_std", "spin", "equal_tokens")


def overrides_of(method: str) -> list[str]:
    return ["+experiment=miniature", f"method={method}", *([TOKENS] if method == "equal_tokens" else [])]


def settings(method: str, *overrides: str) -> dict[str, Any]:
    config = OmegaConf.to_container(composed(*overrides_of(method), "output=out", *overrides), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@pytest.mark.parametrize("method", METHODS)
def test_method_passes_the_checks_before_compute(method: str) -> None:
    for k in (1, 16) if method == "self_contrast" else (None,):
        parts = configure(composed(*overrides_of(method), *SMALL, *([f"negatives={k}"] if k else [])))
        assert parts.generator.check(parts.splits["train"]) is None


@pytest.mark.parametrize("method", METHODS)
def test_method_has_the_hyperparameters_of_self_contrast(method: str) -> None:
    config, expected = settings(method), settings("self_contrast")
    if method == "equal_tokens":
        assert config["trainer"].pop("tokens") is not None
        expected["trainer"].pop("tokens")
    for part in EQUAL_PARTS:
        assert config[part] == expected[part], part
    assert config["data"] == expected["data"]
    assert config["generator"]["prompts"] == expected["generator"]["prompts"]
    assert (config["negatives"] == 1) == (method in ONE_NEGATIVE)


def test_clean_data_changes_only_the_noise() -> None:
    for method in ("self_contrast", "sft_continued"):
        clean, noisy = settings(method, CLEAN), settings(method)
        assert (clean["data"].pop("noise"), noisy["data"].pop("noise")) == (0.0, 0.15)
        assert clean == noisy


def test_command_without_method_equals_method_self_contrast() -> None:
    short = composed("+experiment=miniature", "negatives=16", "seed=3", "output=out")
    long = composed(*overrides_of("self_contrast"), "negatives=16", "seed=3", "output=out")
    assert short == long
    assert (short.negatives, short.seed, short.generator.seed) == (16, 3, 3)


def test_filter_leaves_enough_candidates_for_every_k() -> None:
    """The filter keeps 16 candidates even if only 58 of the 64 samples are distinct."""
    parts = configure(composed("+experiment=miniature", *SMALL))
    selection: Filter = parts.filter
    assert selection.selector.max_kept(58) == selection.max_negatives == 16
    assert parts.generator.samples == 64
    with pytest.raises(UserError, match=r"negatives=17 .*filter\.max_negatives"):
        configure(composed("+experiment=miniature", *SMALL, "negatives=17"))


def test_documented_commands_name_every_method() -> None:
    text = (ROOT / "docs" / "miniature.md").read_text()
    named = [names.split(",") for names in re.findall(r"\+experiment=miniature method=([\w,]+)", text)]
    assert set(METHODS) <= {method for methods in named for method in methods} | {"self_contrast"}
    assert f"method=equal_tokens {TOKENS} " in text
    assert f"{CLEAN} " in text
    assert "python train.py -m +experiment=miniature negatives=1,2,4,8,16 seed=1,2,3,4,5" in text
