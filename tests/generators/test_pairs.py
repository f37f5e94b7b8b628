"""Test candidates that are the data's rejected answers, for the prompts that sampling would draw."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.generators.generate import choose
from selfcontrast.generators.pairs import Pairs
from tiny import candidates_by_prompt, example, policy_folder, tokenizer

RENDERER = Renderer(tokenizer())
EXAMPLES = [
    example(f"e{i}", f"what is the cat {i}?", "a cat", rejected="" if i == 2 else f" a dog {i}\n") for i in range(6)
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy"))


def test_candidates_are_rejected_answers_tokenized_as_in_training(tmp_path: Path, policy: Path) -> None:
    summary = Pairs(None, 120, 0).generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
    results = dict(candidates_by_prompt(tmp_path))
    assert {name: [c.text for c in candidates] for name, candidates in results.items()} == {
        f"e{i}": [f"a dog {i}"] for i in (0, 1, 3, 4, 5)
    }
    for ex in EXAMPLES[:2]:
        assert results[ex.id][0].token_ids == RENDERER.response(ex.prompt, ex.rejected.strip())
    assert (summary["prompts"], summary["responses"]) == (5, 5)


def test_prompts_are_drawn_as_for_sampling(tmp_path: Path, policy: Path) -> None:
    """Prompts without a rejected answer are left out, so DPO_std trains on a subset of Self-Contrast's prompts."""
    generator = Pairs(4, 120, 3)
    generator.generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
    expected = [ex.id for ex in choose(EXAMPLES, 4, 3) if ex.id != "e2"]
    assert [name for name, _ in candidates_by_prompt(tmp_path)] == expected
    assert (generator.samples, generator.follows_model) == (1, False)


def test_check_logs_prompts_without_rejected_and_raises_without_any(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Pairs(None, 120, 0).check(EXAMPLES)
    assert [m.startswith("1 of 6 training prompts") for m in caplog.messages] == [True]
    with pytest.raises(UserError, match="generator=pairs: no training row"):
        Pairs(None, 120, 0).check([replace(ex, rejected="") for ex in EXAMPLES])


def test_invalid_settings_raise(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.prompts=0"):
        Pairs(0, 120, 0)
    with pytest.raises(UserError, match=r"generator\.max_length=4"):
        Pairs(None, 4, 0).generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
