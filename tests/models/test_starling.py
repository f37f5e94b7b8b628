"""Compare a small copy of the published reward model with the sequence classifier that is converted from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from selfcontrast.debug import train_base_tokenizer
from selfcontrast.errors import UserError
from selfcontrast.models.reward import RewardModel
from selfcontrast.models.starling import convert, main

TEXTS = ["Hello there, what now?", "A pear, and two apples.", "No."]


class PublishedModel(nn.Module):
    """The published model, as its model card defines it: one body under two names, and a reward head.

    `forward` reads the reward at the last token. `published` follows the published code: this code encodes "<unk>",
    takes the first id, and reads the reward at the position before the first token with this id. The id is that of
    <s>, which stands at position 0. So position -1 is read.
    """

    def __init__(self, body: LlamaForCausalLM) -> None:
        super().__init__()
        self.model = body
        self.transformer = body.model
        self.v_head = nn.Linear(body.config.hidden_size, 1, bias=False)

    def forward(self, ids: list[int]) -> float:
        return float(self.v_head(self.transformer(torch.tensor([ids]))[0])[0, -1, 0])

    def published(self, ids: list[int], length: int, unknown: int, first: int) -> float:
        row, mask = torch.full((1, length), unknown), torch.zeros((1, length), dtype=torch.long)
        row[0, : len(ids)], mask[0, : len(ids)] = torch.tensor(ids), 1
        hidden = self.transformer(row, attention_mask=mask)[0]
        return float(self.v_head(hidden)[0, row[0].tolist().index(first) - 1, 0])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PublishedModel, Any]:
    folder, tokenizer = tmp_path_factory.mktemp("published"), train_base_tokenizer(TEXTS)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = PublishedModel(LlamaForCausalLM(config).eval())
    (folder / "starling").mkdir()
    torch.save(model.state_dict(), folder / "starling" / "starling_rm_model.bin")
    config.save_pretrained(str(folder / "llama"))
    tokenizer.save_pretrained(str(folder / "llama"))
    return folder, model, tokenizer


@torch.inference_mode()
def test_convert_rewards_equal_the_published_weights(
    published: tuple[Path, PublishedModel, Any], tmp_path: Path
) -> None:
    """Dialogues are rendered as in the reference implementation. A Llama tokenizer puts <s> before them."""
    folder, model, tokenizer = published
    convert(folder / "starling", folder / "llama", tmp_path / "out", "float32")
    dialogue: Any = [
        {"role": "user", "content": TEXTS[0]},
        {"role": "assistant", "content": TEXTS[1]},
        {"role": "user", "content": TEXTS[2]},
    ]
    responses = [(dialogue[:1], TEXTS[1]), (dialogue[:1], "No."), (dialogue, "A pear")]
    with RewardModel(str(tmp_path / "out"), None, "float32", 200, "last_token", False, 2).open("cpu") as reward:
        rewards = reward(responses)
    with RewardModel(str(tmp_path / "out"), None, "float32", 200, "published", False, 2).open("cpu") as reward:
        published_code = reward(responses)
    rendered = [
        f"<s>[INST] {TEXTS[0]} [/INST] {TEXTS[1]} </s>",
        f"<s>[INST] {TEXTS[0]} [/INST] No. </s>",
        f"<s>[INST] {TEXTS[0]} [/INST] {TEXTS[1]} </s><s>[INST] {TEXTS[2]} [/INST] A pear </s>",
    ]
    rows = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in rendered]
    expected = [model(ids) for ids in rows]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    padded = [model.published(ids, 200, tokenizer.unk_token_id, 1) for ids in rows]
    assert published_code.tolist() == pytest.approx(padded, abs=1e-5)
    assert all(abs(a - b) > 1e-3 for a, b in zip(padded, expected, strict=True))


def test_convert_body_stored_once_or_twice_gives_equal_files(
    published: tuple[Path, PublishedModel, Any], tmp_path: Path
) -> None:
    folder, model, _ = published
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("transformer.")}
    (tmp_path / "starling").mkdir()
    torch.save(kept, tmp_path / "starling" / "model.bin")
    convert(tmp_path / "starling", folder / "llama", tmp_path / "once", "float32")
    convert(folder / "starling", folder / "llama", tmp_path / "twice", "float32")
    once, twice = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


def test_convert_unsuitable_folders_raise(
    published: tuple[Path, PublishedModel, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model, _ = published
    with pytest.raises(UserError, match=r" 0 files \*\.bin"):
        convert(tmp_path, folder / "llama", tmp_path / "out")
    with pytest.raises(UserError, match=r"--body .*nowhere"):
        convert(folder / "starling", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "half").mkdir()
    incomplete = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    torch.save(incomplete, tmp_path / "half" / "model.bin")
    with pytest.raises(UserError, match=r"model\.bin .*model\.layers\.1\."):
        convert(tmp_path / "half", folder / "llama", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"error: .*\*\.bin"):
        main([str(tmp_path), "--body", str(folder / "llama"), "--output", str(tmp_path / "out")])
    main([str(folder / "starling"), "--body", str(folder / "llama"), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
