"""Test that prompts depend only on what is in the store key, and that models get only supported ids and lengths."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import chat_template_utils

from jobs import TINY_FOR_ANY_MODEL
from selfcontrast.config import configure
from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.data.rendering import PROBE, Renderer, repeatable
from selfcontrast.errors import UserError
from selfcontrast.generators.sampling import sample
from selfcontrast.models.loading import Pretrained, load_tokenizer, save_policy
from selfcontrast.models.packing import Group
from selfcontrast.training.fit import prepare
from test_config import composed
from tiny import TEMPLATE, hardware, llama, policy_folder, tokenizer

CLOCK = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + TEMPLATE
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("date_format", "expected"),
    [("%d %b %Y", "26 Jul 2024"), ("%Y-%m-%d", "2024-07-26"), ("%A, %B %d at %H:%M", "Friday, July 26 at 00:00")],
)
def test_template_that_reads_the_clock_renders_the_same_on_every_day(
    date_format: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class YearsLater(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", YearsLater)
    template = CLOCK.replace("%d %b %Y", date_format)
    assert "2031" in tokenizer(CLOCK).apply_chat_template(MESSAGES, tokenize=False)
    tok = tokenizer(template)
    assert Renderer(tok)._text(MESSAGES).startswith(f"Today is {expected}. <|user|>")
    save_policy(tmp_path, llama(), tok, "")  # anyone who loads the policy must render the same prompt
    reloaded = load_tokenizer(tmp_path)
    assert reloaded.apply_chat_template(MESSAGES, tokenize=False).startswith(f"Today is {expected}. <|user|>")
    assert repeatable(reloaded.chat_template) == reloaded.chat_template


def test_template_without_a_clock_is_unchanged() -> None:
    assert Renderer(tokenizer()).tokenizer.chat_template == TEMPLATE


RANDOM_PARTS = [
    "{{ ['Hi', 'Hello'] | random }}",
    "{{ [1, 2]|random }}",
    "{{ lipsum(n=1) }}",
    "{% set f = lipsum %}{{ f(n=1) }}",
    "{% filter random %}abc{% endfilter %}",
    "{{ [['Hi', 'Hello']]|map('random')|first }}",
    "{% for a in [1] %}{% break %}{% endfor %}{% generation %}{{ [1, 2]|random }}{% endgeneration %}",
]


@pytest.mark.parametrize(
    "part",
    [
        "{{ messages[0].content.strip }}",
        "{{ messages|map(attribute='role') }}",
        "{{ raise_exception }}",
        "{{ messages[0].items }}",
    ],
)
def test_template_that_renders_an_object_raises(part: str) -> None:
    """The prompt would contain the object's memory address, which differs in every process."""
    with pytest.raises(UserError, match=r"shows an object .* at 0x[0-9a-f]+>"):
        Renderer(tokenizer(part + TEMPLATE))


def test_memory_address_in_a_message_is_rendered() -> None:
    renderer, text = Renderer(tokenizer()), "What is <function f at 0x7f00ab>?"
    assert text in renderer.tokenizer.decode(renderer.prompt([{"role": "user", "content": text}]))


def test_all_templates_of_a_tokenizer_are_made_repeatable() -> None:
    tok = tokenizer({"default": CLOCK, "tool_use": CLOCK})  # type: ignore[arg-type]
    assert Renderer(tok).prompt(PROBE) == Renderer(tokenizer(CLOCK)).prompt(PROBE)
    with pytest.raises(UserError, match="draws at random"):
        Renderer(tokenizer({"default": TEMPLATE, "other": RANDOM_PARTS[0]}))  # type: ignore[arg-type]


def test_template_with_the_word_random_in_a_text_is_accepted() -> None:
    Renderer(tokenizer("{# at random #}a random text {{ 'of random words' }}" + TEMPLATE))


@pytest.mark.parametrize("part", RANDOM_PARTS)
def test_template_that_draws_at_random_raises(part: str) -> None:
    with pytest.raises(UserError, match="draws at random"):
        Renderer(tokenizer(part + TEMPLATE))


def test_sampling_never_draws_an_id_outside_the_tokenizer() -> None:
    tok = tokenizer()
    # The model is nearly uniform, so a sixth of its draws would be outside the tokenizer.
    model = llama(vocabulary=len(tok) + 64, spread=0.01)
    decoding = Decoding(16, 1.0, 1.0, 24, 128)
    candidates = sample(model, tok, [Request("a", tok("the cat")["input_ids"])], decoding, 0, {tok.eos_token_id})
    assert max(token for candidate in candidates for token in candidate.token_ids) < len(tok)
    assert all(torch.isfinite(torch.tensor(candidate.log_prob)) for candidate in candidates)


def test_pretrained_tokenizer_of_another_model_raises(tmp_path: Path) -> None:
    save_policy(tmp_path, llama(vocabulary=len(tokenizer()) - 5), tokenizer(), "")
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, but its embeddings have \d+ rows"):
        Pretrained(str(tmp_path), None, None, [], "float32", False, True).start([], 0)


def test_configure_max_length_above_the_models_positions_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = policy_folder(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 128
    data = ("data.train=64", "data.test=16", "data.validation=16", "output=out")
    common = (*TINY_FOR_ANY_MODEL, *data, "tracking=none", "model=hf", f"model.path={folder}")
    configure(composed(*common))
    assert "positions" not in caplog.text
    for name in ("sft.max_length", "trainer.max_length", "generator.max_length", "evaluation.max_length"):
        configure(composed(*common, f"{name}=129"))
        assert f"{name}=129: more than the model's 128 positions" in caplog.text


def test_prepare_row_longer_than_the_models_positions_raises() -> None:
    rows = [Group("a", [1] * 100, [2] * 20, [[3] * 28]), Group("b", [1], [2], [[3]])]
    prepare(llama(), rows, hardware(self_check=False))
    with pytest.raises(UserError, match="a prompt with its response has 129 tokens, but the model has 128 positions"):
        prepare(llama(), [*rows, Group("c", [1] * 100, [2] * 20, [[3] * 29])], hardware(self_check=False))
