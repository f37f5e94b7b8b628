"""Files that lack a model's weights, hold them under other names or in other shapes, are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from judging import around, reading, single
from models.test_reward import classifier_folder
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.budget import Budget
from selfcontrast.evaluation.judges.hf import HFJudge
from selfcontrast.filters.encode import SentenceEncoder, builtin_folder
from selfcontrast.models.loading import Pretrained, load_model
from selfcontrast.models.reward import RewardModel
from tiny import policy_folder

Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


def rewritten(source: Path, folder: Path, change: Change) -> Path:
    """A copy of a model folder whose weights are changed."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def as_ddp(weights: Weights) -> Weights:
    return {f"module.{name}": value for name, value in weights.items()}


def half(weights: Weights) -> Weights:
    return {name: value for i, (name, value) in enumerate(sorted(weights.items())) if i % 2}


def one_less(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name != sorted(weights)[-1]}


def shorter(weights: Weights) -> Weights:
    name = sorted(weights)[-1]
    return {**weights, name: weights[name][:-1].clone()}


DAMAGE = {
    "as DDP saves them": (as_ddp, r"are missing: .*name them otherwise, such as module\."),
    "compiled": (lambda w: {f"_orig_mod.{n}": v for n, v in w.items()}, r"such as _orig_mod\."),
    "half of them": (half, r"weights are missing: "),
    "one": (one_less, r": 1 of \d+ weights are missing: "),
    "another shape": (shorter, r"1 weights have another shape, such as .*: \[\d+.* by its config"),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def rewarding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_folder(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_load_model_damaged_weights_refused(kind: str, policy: Path, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    folder = rewritten(policy, tmp_path / "model", change)
    with pytest.raises(UserError, match=line) as told:
        Pretrained(str(folder), None, None, [], "float32", False, True).start([], 0)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_reward_model_damaged_weights_refused(kind: str, rewarding: Path, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    model = RewardModel(str(rewritten(rewarding, tmp_path / "m", change)), None, "float32", 128, "last_token", False, 2)
    with pytest.raises(UserError, match=r"reward_model\.path=.*" + line), model.open("cpu"):
        pass


def test_reward_model_without_a_trained_head_refused(policy: Path, tmp_path: Path) -> None:
    """A causal model opened as a classifier would get a random head."""
    folder = shutil.copytree(policy, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 1, "id2label": {"0": "LABEL_0"}}))
    model = RewardModel(str(folder), None, "float32", 128, "last_token", False, 2)
    with pytest.raises(UserError, match=r"1 of \d+ weights are missing: score\.weight"), model.open("cpu"):
        pass


def encoder(path: Path) -> SentenceEncoder:
    return SentenceEncoder(str(path), None, "", None, "float32", 256, "cut", False, 8, [])


@pytest.mark.parametrize("kind", [name for name in DAMAGE if name != "one"])  # its last is the pooler's, unused
def test_encoder_damaged_weights_refused(kind: str, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    if kind == "another shape":
        change = lambda w: {**w, "embeddings.LayerNorm.bias": torch.zeros(3)}  # noqa: E731
    folder = rewritten(builtin_folder(), tmp_path / "model", change)
    with pytest.raises(UserError, match=r"encoder\.path=.*" + line), encoder(folder).open("cpu"):
        pass


def test_encoder_from_a_masked_language_model_without_pooler_loads(tmp_path: Path) -> None:
    """BERT's own pooler is read by nobody, and the masked model's head is of no use to an encoder."""
    folder = shutil.copytree(builtin_folder(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {f"bert.{name}": value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file({**kept, "cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with encoder(folder).open("cpu") as encode, encoder(builtin_folder()).open("cpu") as original:
        assert (encode(["a text"]) == original(["a text"])).all()


def test_judge_damaged_weights_refused(policy: Path, tmp_path: Path) -> None:
    folder = rewritten(policy, tmp_path / "model", as_ddp)
    judge = HFJudge(str(folder), "float32", 0.0, "text", 4096, reading(attempts=1), batch=1)
    with judge.open(around(tmp_path, budget=Budget(None))) as judging, pytest.raises(UserError, match="are missing"):
        judging([single("a cat")])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.layers.0.self_attn.q_proj.bias", (32,)), ("model.layers.7.mlp.up_proj.weight", (64, 32))],
)
def test_load_model_config_that_leaves_weights_out_refused(
    name: str, shape: tuple[int, ...], policy: Path, tmp_path: Path
) -> None:
    """Biases of a model whose config has none, or layers beyond its number."""
    folder = rewritten(policy, tmp_path / "model", lambda weights: {**weights, name: torch.ones(shape)})
    with pytest.raises(UserError, match=f"its config leaves out 1 weights of its files: {name}"):
        load_model(folder)


def test_load_model_head_of_another_use_is_left_out(policy: Path, tmp_path: Path) -> None:
    folder = rewritten(policy, tmp_path / "model", lambda weights: {**weights, "v_head.weight": torch.ones(1, 32)})
    assert torch.equal(load_model(folder).lm_head.weight, load_model(policy).lm_head.weight)


def test_load_model_of_a_bare_gpt2_body_loads(tmp_path: Path) -> None:
    """The hub's gpt2 holds the body alone, without its prefix; the tied output layer is no missing weight."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model.transformer.save_pretrained(str(tmp_path))
    assert torch.equal(load_model(tmp_path).transformer.wte.weight, model.transformer.wte.weight)


def test_load_model_bert_folder_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).bert.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="weights are missing: cls"):
        load_model(tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 200, 5000])
def test_load_model_cut_file_refused_in_one_line(cut: int, policy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(policy, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot be loaded") as told:
        load_model(folder)
    assert "\n" not in str(told.value)
