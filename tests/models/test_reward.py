"""Test reward models with a tiny random classifier: batches, lengths, and unsuitable models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from selfcontrast.errors import UserError
from selfcontrast.models.reward import Response, RewardModel
from selfcontrast.models.truncation import unread
from tiny import tokenizer

RESPONSES: list[Response] = [
    ([{"role": "user", "content": "what is the name of the cat?"}], "a cat"),
    ([{"role": "user", "content": "Paris?"}], "the cat sat on the mat, and Paris is in France"),
    ([{"role": "user", "content": "Paris?"}], "你好 🙂"),
    ([{"role": "user", "content": "Paris?"}], ""),
]


def classifier_folder(folder: Path, labels: int = 1, template: bool = True) -> Path:
    tokenizer_ = tokenizer()
    if not template:
        tokenizer_.chat_template = None
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer_), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, num_labels=labels, initializer_range=0.5, pad_token_id=None,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(str(folder))
    tokenizer_.save_pretrained(str(folder))
    return folder


def reward_model(folder: Path, **changes: Any) -> RewardModel:
    model = RewardModel(str(folder), None, "float32", 128, "last_token", trust_remote_code=False, batch_size=2)
    return replace(model, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_folder(tmp_path_factory.mktemp("reward"))


def rewards(model: RewardModel) -> Any:
    with model.open("cpu") as reward:
        return reward(RESPONSES)


def test_rewards_equal_single_forward_passes(folder: Path) -> None:
    """Compare batches with one forward pass of the classifier per rendered dialogue, without padding."""
    model, tokenizer_ = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval(), tokenizer()
    expected = []
    for dialogue, text in RESPONSES:
        messages = [*dialogue, {"role": "assistant", "content": text}]
        ids = tokenizer_.apply_chat_template(messages, return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            expected.append(float(model(ids).logits[0, 0]))
    assert len(set(np.round(expected, 3))) == 4
    batched = rewards(reward_model(folder))
    assert batched.dtype == np.float32
    np.testing.assert_allclose(batched, expected, atol=1e-5)
    np.testing.assert_allclose(rewards(reward_model(folder, batch_size=4)), expected, atol=1e-5)


def test_long_dialogue_keeps_its_last_tokens(folder: Path) -> None:
    truncated = rewards(reward_model(folder, max_tokens=6))
    assert not np.allclose(truncated, rewards(reward_model(folder)))
    model, tokenizer_ = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval(), tokenizer()
    messages = [*RESPONSES[1][0], {"role": "assistant", "content": RESPONSES[1][1]}]
    ids = tokenizer_.apply_chat_template(messages, return_tensors="pt", return_dict=False)[:, -6:]
    with torch.inference_mode():
        assert truncated[1] == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-5)


@torch.inference_mode()
def rewards_at_last_position(folder: Path, max_tokens: int) -> list[float]:
    """Run a plain forward pass over each row, padded to `max_tokens`. Return the rewards at the last position.

    A longer row keeps its first token and its last `max_tokens` - 1 tokens.
    """
    model, tokenizer_ = LlamaForSequenceClassification.from_pretrained(str(folder)).eval(), tokenizer()
    values = []
    for dialogue, text in RESPONSES:
        messages = [*dialogue, {"role": "assistant", "content": text}]
        ids = tokenizer_.apply_chat_template(messages, return_dict=False)
        row = ids if len(ids) <= max_tokens else [ids[0], *ids[-1:-max_tokens:-1][::-1]]
        padding = max_tokens - len(row)
        hidden = model.model(
            torch.tensor([row + [tokenizer_.pad_token_id] * padding]),
            attention_mask=torch.tensor([[1] * len(row) + [0] * padding]),
        ).last_hidden_state
        values.append(float(model.score(hidden)[0, -1, 0]))
    return values


def rendered() -> list[list[int]]:
    messages = [[*dialogue, {"role": "assistant", "content": text}] for dialogue, text in RESPONSES]
    return [tokenizer().apply_chat_template(dialogue, return_dict=False) for dialogue in messages]


def lengths() -> list[int]:
    return [len(tokens) for tokens in rendered()]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_read_at_published_reads_last_position_of_padded_row(folder: Path, batch_size: int) -> None:
    """The loop covers `max_tokens` above, at, and below the length of the longest row."""
    assert len(set(lengths())) > 2
    for max_tokens in (128, max(lengths()) + 1, max(lengths()), max(lengths()) - 1, min(lengths())):
        values = rewards(reward_model(folder, read_at="published", max_tokens=max_tokens, batch_size=batch_size))
        np.testing.assert_allclose(values, rewards_at_last_position(folder, max_tokens), atol=1e-5)


def test_read_at_changes_reward_and_fingerprint(folder: Path) -> None:
    last, published = reward_model(folder), reward_model(folder, read_at="published")
    assert (np.abs(rewards(last) - rewards(published)) > 1e-2).all()
    assert last.fingerprint() != published.fingerprint()


def test_unsuitable_models_raise(tmp_path: Path) -> None:
    two_outputs = classifier_folder(tmp_path / "two_outputs", labels=2)
    with pytest.raises(UserError, match=r"reward_model\.path=.*two_outputs has 2 outputs.*num_labels=1"):
        reward_model(two_outputs).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"reward_model\.path=.*empty: "):
        reward_model(tmp_path / "empty").check()
    with pytest.raises(UserError, match=r"reward_model\.path=\./nowhere"):
        reward_model(Path("nowhere"), path="./nowhere").check()
    no_template = reward_model(classifier_folder(tmp_path / "no_template", template=False))
    with pytest.raises(UserError, match="no chat template"), no_template.open("cpu"):
        pass


def test_fingerprint_depends_on_content_not_path(folder: Path, tmp_path: Path) -> None:
    import shutil

    before = reward_model(folder).fingerprint()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert reward_model(copy, batch_size=9).fingerprint() == before
    (copy / "tokenizer_config.json").write_text("{}")
    assert reward_model(copy).fingerprint() != before
    assert reward_model(Path("hub"), path="org/name").fingerprint()["path"] == "org/name"


@pytest.mark.parametrize("changes", [{"dtype": "int4"}, {"max_tokens": 0}, {"batch_size": 0}, {"read_at": "eos"}])
def test_reward_model_invalid_settings_raise(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"reward_model\."):
        reward_model(Path("x"), **changes)


def test_unread_counts_tokens_beyond_the_limit(folder: Path) -> None:
    longest = max(lengths())
    with reward_model(folder, max_tokens=longest - 3).open("cpu") as reward:
        counts = unread(reward, RESPONSES)
    assert counts.tolist() == [[n, max(0, n - (longest - 3))] for n in lengths()]
    assert unread(lambda responses: None, RESPONSES).sum() == 0
