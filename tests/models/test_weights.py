"""Test that loading files with missing, renamed, misshapen or unusable weights raises an error that names a weight."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from judge_cases import judge_context, reply_settings, single
from models.test_reward import classifier_folder
from selfcontrast.errors import UserError
from selfcontrast.evaluation.judges.budget import Budget
from selfcontrast.evaluation.judges.hf import HFJudge
from selfcontrast.filters.encode import SentenceEncoder, builtin_folder
from selfcontrast.models.folders import check_weights, is_finite
from selfcontrast.models.loading import Pretrained, load_model, save_policy
from selfcontrast.models.reward import RewardModel
from tiny import llama, policy_folder, tokenizer

Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


def copy_with(source: Path, folder: Path, change: Change) -> Path:
    """Copy a model folder and change its weights."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def prefix_as_ddp(weights: Weights) -> Weights:
    return {f"module.{name}": value for name, value in weights.items()}


def keep_half(weights: Weights) -> Weights:
    return {name: value for i, (name, value) in enumerate(sorted(weights.items())) if i % 2}


def remove_last(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if name != sorted(weights)[-1]}


def shorten_last(weights: Weights) -> Weights:
    name = sorted(weights)[-1]
    return {**weights, name: weights[name][:-1].clone()}


def set_value(value: float) -> Change:
    def change(weights: Weights) -> Weights:
        name = next(name for name, weight in sorted(weights.items()) if weight.dim() > 1)
        weights[name].view(-1)[-1] = value
        return weights

    return change


def cast_to(dtype: torch.dtype) -> Change:
    def change(weights: Weights) -> Weights:
        name = next(name for name, weight in sorted(weights.items()) if weight.dim() > 1)
        return {**weights, name: (100 * weights[name]).to(dtype)}

    return change


UNUSABLE = r"the weight \S+ has values that are NaN or infinite"
DAMAGE = {
    "NaN": (set_value(float("nan")), UNUSABLE),
    "infinite": (set_value(float("-inf")), UNUSABLE),
    "infinite in float32": (lambda w: {n: v.double() * 1e300 for n, v in w.items()}, UNUSABLE),
    "integers": (cast_to(torch.int32), r"the weight \S+ has the type I32"),
    "bytes": (cast_to(torch.uint8), "has the type U8"),
    "truth values": (cast_to(torch.bool), "has the type BOOL"),
    "complex numbers": (cast_to(torch.complex64), "has the type C64"),
    "as DDP saves them": (prefix_as_ddp, r"are missing: .*such as module\."),
    "compiled": (lambda w: {f"_orig_mod.{n}": v for n, v in w.items()}, r"such as _orig_mod\."),
    "half missing": (keep_half, r"weights are missing: "),
    "one missing": (remove_last, r": 1 of \d+ weights are missing: "),
    "another shape": (shorten_last, r"1 weights have another shape, such as .*: \[\d+"),
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_folder(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_folder(tmp_path_factory.mktemp("reward"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_load_model_damaged_weights_refused(kind: str, policy: Path, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    folder = copy_with(policy, tmp_path / "model", change)
    with pytest.raises(UserError, match=line) as error:
        Pretrained(str(folder), None, None, [], "float32", False, True).start([], 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", DAMAGE)
def test_reward_model_damaged_weights_refused(kind: str, classifier: Path, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    model = RewardModel(
        str(copy_with(classifier, tmp_path / "m", change)), None, "float32", 128, "last_token", False, 2
    )
    with pytest.raises(UserError, match=r"reward_model\.path=.*" + line), model.open("cpu"):
        pass


def test_reward_model_without_a_trained_head_refused(policy: Path, tmp_path: Path) -> None:
    """A causal model that is loaded as a classifier would get a random head."""
    folder = shutil.copytree(policy, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 1, "id2label": {"0": "LABEL_0"}}))
    model = RewardModel(str(folder), None, "float32", 128, "last_token", False, 2)
    with pytest.raises(UserError, match=r"1 of \d+ weights are missing: score\.weight"), model.open("cpu"):
        pass


def encoder(path: Path) -> SentenceEncoder:
    return SentenceEncoder(str(path), None, "", None, "float32", 256, "cut", False, 8, [])


# "one missing" would remove a weight of the pooler, which the encoder does not use.
@pytest.mark.parametrize("kind", [name for name in DAMAGE if name != "one missing"])
def test_encoder_damaged_weights_refused(kind: str, tmp_path: Path) -> None:
    change, line = DAMAGE[kind]
    if kind == "another shape":
        change = lambda w: {**w, "embeddings.LayerNorm.bias": torch.zeros(3)}  # noqa: E731
    folder = copy_with(builtin_folder(), tmp_path / "model", change)
    with pytest.raises(UserError, match=r"encoder\.path=.*" + line), encoder(folder).open("cpu"):
        pass


def test_encoder_from_a_masked_language_model_without_pooler_loads(tmp_path: Path) -> None:
    """An encoder uses neither BERT's own pooler nor the head of the masked language model."""
    folder = shutil.copytree(builtin_folder(), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    kept = {f"bert.{name}": value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file({**kept, "cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with encoder(folder).open("cpu") as encode, encoder(builtin_folder()).open("cpu") as original:
        assert (encode(["a text"]) == original(["a text"])).all()


def test_judge_damaged_weights_refused(policy: Path, tmp_path: Path) -> None:
    folder = copy_with(policy, tmp_path / "model", prefix_as_ddp)
    judge = HFJudge(str(folder), "float32", 0.0, "text", 4096, reply_settings(attempts=1), batch_size=1)
    with (
        judge.open(judge_context(tmp_path, budget=Budget(None))) as judging,
        pytest.raises(UserError, match="are missing"),
    ):
        judging([single("a cat")])


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.layers.0.self_attn.q_proj.bias", (32,)), ("model.layers.7.mlp.up_proj.weight", (64, 32))],
)
def test_load_model_files_with_unknown_weights_refused(
    name: str, shape: tuple[int, ...], policy: Path, tmp_path: Path
) -> None:
    """The files have a bias or a layer that the config does not have."""
    folder = copy_with(policy, tmp_path / "model", lambda weights: {**weights, name: torch.ones(shape)})
    with pytest.raises(UserError, match=f" 1 weights of its files: {name}"):
        load_model(folder)


def test_load_model_unknown_head_is_left_out(policy: Path, tmp_path: Path) -> None:
    folder = copy_with(policy, tmp_path / "model", lambda weights: {**weights, "v_head.weight": torch.ones(1, 32)})
    assert torch.equal(load_model(folder).lm_head.weight, load_model(policy).lm_head.weight)


def test_load_model_of_a_bare_gpt2_body_loads(tmp_path: Path) -> None:
    """The hub's gpt2 has only the body's weights, without the prefix "transformer.". The output layer is tied."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    model.transformer.save_pretrained(str(tmp_path))
    assert torch.equal(load_model(tmp_path).transformer.wte.weight, model.transformer.wte.weight)


def test_load_model_bert_folder_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(config).bert.save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="weights are missing: cls"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_is_finite_detects_nan_and_infinity_in_every_dtype(dtype: torch.dtype) -> None:
    values = torch.linspace(-2, 2, 12).to(dtype).view(3, 4)
    assert is_finite(values)
    assert is_finite(values[:0])
    for bad in (math.nan, *([] if dtype.itemsize == 1 else [math.inf, -math.inf])):  # float8_e4m3fn has no infinity
        values = values.clone()
        values[1, 2] = torch.tensor(bad).to(dtype)
        assert not is_finite(values)


def test_check_weights_integer_buffers_are_accepted(policy: Path, tmp_path: Path) -> None:
    """GPT-2 stores its mask as attn.bias, and BERT stores its positions. Both are integer buffers, not weights."""
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "embeddings.position_ids": torch.arange(4)}
    check_weights(copy_with(policy, tmp_path / "model", lambda weights: {**weights, **buffers}), "model.path")


def test_check_weights_quantized_model_may_hold_integers(policy: Path, tmp_path: Path) -> None:
    folder = copy_with(policy, tmp_path / "model", cast_to(torch.int8))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "any"}}))
    check_weights(folder, "model.path")


def test_load_model_with_nan_from_diverged_training_refused(tmp_path: Path) -> None:
    model = llama()
    model.model.norm.weight.data[0] = torch.nan
    save_policy(tmp_path / "model", model, tokenizer(), "")
    with pytest.raises(UserError, match=r"model\.norm\.weight .*NaN"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("cut", [0, 7, 200, 5000])
def test_load_model_cut_file_refused_in_one_line(cut: int, policy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(policy, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_model(folder)
    assert "\n" not in str(error.value)
