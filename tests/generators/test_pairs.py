"""The data's own rejected answers as candidates: those of the prompts that sampling would draw."""

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


def test_each_prompt_has_its_own_rejected_answer_as_training_would_have_it(tmp_path: Path, policy: Path) -> None:
    summary = Pairs(None, 120, 0).generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
    found = dict(candidates_by_prompt(tmp_path))
    assert {name: [c.text for c in own] for name, own in found.items()} == {
        f"e{i}": [f"a dog {i}"] for i in (0, 1, 3, 4, 5)
    }
    for one in EXAMPLES[:2]:
        assert found[one.id][0].token_ids == RENDERER.response(one.prompt, one.rejected.strip())
    assert (summary["prompts"], summary["responses"]) == (5, 5)


def test_the_prompts_are_drawn_as_sampling_draws_them(tmp_path: Path, policy: Path) -> None:
    """Less those without a rejected answer, so that DPO_std sees no prompt that Self-Contrast does not."""
    own = Pairs(4, 120, 3)
    own.generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
    drawn = [one.id for one in choose(EXAMPLES, 4, 3) if one.id != "e2"]
    assert [name for name, _ in candidates_by_prompt(tmp_path)] == drawn
    assert (own.samples, own.follows_model) == (1, False)


def test_prompts_without_a_rejected_answer_are_counted_before_any_compute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Pairs(None, 120, 0).check(EXAMPLES)
    assert caplog.messages == ["1 of 6 training prompts have no rejected answer: not used"]
    with pytest.raises(UserError, match="no training row of this data has a rejected answer"):
        Pairs(None, 120, 0).check([replace(one, rejected="") for one in EXAMPLES])


def test_settings_that_cannot_be(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(UserError, match=r"generator\.prompts=0"):
        Pairs(0, 120, 0)
    with pytest.raises(UserError, match=r"no response has room in generator\.max_length=4"):
        Pairs(None, 4, 0).generate(tmp_path, policy, EXAMPLES, Local(1, 1), "cpu")
