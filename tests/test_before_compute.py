"""Check that unusable data and models are reported in one line before compute."""

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from jobs import run_train
from models.test_reward import classifier_folder
from selfcontrast.config import Parts, configure
from selfcontrast.data.example import Example
from selfcontrast.data.template_checks import one_per_role_sequence
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import builtin_folder
from selfcontrast.models.loading import load_tokenizer, save_policy, valid_generation_config
from shared import shared_data
from test_config import composed
from tiny import llama, policy_folder, tokenizer

NO_SYSTEM = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}<|{{ m.role }}|>
{{ m.content | trim }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
USER, SYSTEM = {"role": "user", "content": "Name a tree."}, {"role": "system", "content": "Be brief (5)."}
ANSWER = {"role": "assistant", "content": "An oak."}


def rows(*more: Sequence[dict[str, str]], plain: int = 24) -> list[dict[str, Any]]:
    """Return `plain` rows with a question and an answer each, and then rows with the dialogues `more`."""
    dialogues = [[{"role": "user", "content": f"Name fruit number {i}, please."}, ANSWER] for i in range(plain)]
    return [{"messages": list(messages)} for messages in (*dialogues, *more)]


def write_rows(file: Path, content: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return file


def configure_job(folder: Path, data: Path, *overrides: str, template: str = NO_SYSTEM, kind: str = "jsonl") -> Parts:
    (folder / "own.jinja").write_text(template)
    model = folder / "model"
    if not model.exists():
        policy_folder(model)
    path = {"jsonl": "data.path", "hub": "data.train.path"}[kind]
    return configure(
        composed(
            "model=hf", f"model.path={model}", f"model.chat_template={folder / 'own.jinja'}", f"data={kind}",
            f"{path}={data}", "tracking=none", f"output={folder / 'out'}", f"store={folder / 'store'}", *overrides,
        )
    )  # fmt: skip


REFUSED_DIALOGUES = {"a system message": [SYSTEM, USER, ANSWER], "the user twice": [USER, USER, ANSWER]}


@pytest.mark.parametrize("messages", REFUSED_DIALOGUES.values(), ids=REFUSED_DIALOGUES)
def test_row_refused_by_the_template_is_named_before_compute(messages: list[dict[str, str]], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", [{**row, "id": f"r{i}"} for i, row in enumerate(rows(messages))])
    line = r"^data: the row r24 \(line 25 of \S+data\.jsonl\) of the split \w+, '.*Name a tree"
    with pytest.raises(UserError, match=line):
        configure_job(tmp_path, data)


@pytest.mark.parametrize("messages", REFUSED_DIALOGUES.values(), ids=REFUSED_DIALOGUES)
def test_row_of_a_hub_data_set_refused_by_the_template_is_left_out(
    messages: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = configure_job(tmp_path, write_rows(tmp_path / "a.jsonl", rows()), "data.test=null", kind="hub")
    parts = configure_job(tmp_path, write_rows(tmp_path / "b.jsonl", rows(messages)), "data.test=null", kind="hub")
    assert sum(map(len, parts.splits.values())) == 24 == sum(map(len, clean.splits.values()))
    assert len(parts.left_out) == 1
    assert "1 of" in caplog.text
    assert "left_out" in parts.rows
    assert "left_out" not in clean.rows


@pytest.mark.parametrize(("name", "row"), [("system_in_train", "System role"), ("one_odd_row", "roles must alternate")])
def test_rows_of_reported_cases_are_refused(name: str, row: str, tmp_path: Path) -> None:
    data, template = shared_data("cases", f"{name}.jsonl"), shared_data("cases", "nosystem.jinja")
    with pytest.raises(UserError, match=rf"^data: the row \w+ \(line \d+ of .*Name a tree.*{row}"):
        configure_job(tmp_path, data, template=template.read_text())


def test_row_altered_by_the_template_is_refused_with_its_line(tmp_path: Path) -> None:
    """A template that removes thoughts from answers changes the trained answer."""
    without_thoughts = NO_SYSTEM.replace("m.content | trim", "(m.content.split('</think>') | last) | trim")
    thinking = [USER, {"role": "assistant", "content": "<think>hm</think>An oak."}]
    with pytest.raises(UserError, match=r"^data: the row \w+ \(line 25 of \S+\) of the split"):
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", rows(thinking)), template=without_thoughts)


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_refused_row_is_named_by_its_position_in_every_file_format(kind: str, tmp_path: Path) -> None:
    content, file = rows([SYSTEM, USER, ANSWER]), tmp_path / f"data.{kind}"
    lines = "\n" + "\n".join(map(json.dumps, content))  # the blank first line has the number 1
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(content), file)
    else:
        text = json.dumps(content) if kind == "json" else lines
        file.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    position = "row 25" if kind in ("json", "parquet") else "line 26"
    with pytest.raises(UserError, match=rf"^data: the row \w+ \({position} of \S+{kind}\)"):
        configure_job(tmp_path, file)


def test_every_rejected_answer_of_a_row_is_checked(tmp_path: Path) -> None:
    without_thoughts = NO_SYSTEM.replace("m.content | trim", "(m.content.split('</think>') | last) | trim")
    changed = {"prompt": "Name a tree.", "chosen": "An oak.", "rejected": ["Elm.", "<think>hm</think>Ash."]}
    plain = [{"prompt": f"Name fruit {i}.", "chosen": "A pear.", "rejected": "None."} for i in range(24)]
    with pytest.raises(UserError, match=r"line 25 of"):
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", [*plain, changed]), template=without_thoughts)


def test_one_per_role_sequence_returns_one_example_per_sequence_of_roles() -> None:
    examples = [Example(str(i), [*first, USER], "x") for i, first in enumerate([[], [SYSTEM], [], [SYSTEM], []])]
    assert [e.id for e in one_per_role_sequence([*examples, Example("played", [USER], "x", turns=["a", "b"])])] == [
        "played",
        "0",
        "1",
    ]


# --- models that cannot be used


def save_other_model(folder: Path, kind: str) -> Path:
    small: dict[str, Any] = {"vocab_size": 300, "num_hidden_layers": 1}
    if kind == "t5":
        model: Any = T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=8, d_ff=8, num_layers=1, num_heads=2))
    else:
        model = BertForMaskedLM(BertConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, **small))
    model.save_pretrained(str(folder))
    tokenizer().save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_model_that_is_no_causal_language_model_is_refused(kind: str, tmp_path: Path) -> None:
    save_other_model(tmp_path / "model", kind)
    with pytest.raises(UserError, match=rf"^model\.path=\S+: .*{kind}"):
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", rows()))


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def set_weight(value: torch.Tensor) -> Callable[[Path], None]:
    """Return a function that replaces a weight by `value`."""

    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in sorted(weights) if name.lower().endswith("norm.weight"))
        weights[name] = weights[name].to(value.dtype)
        weights[name][0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


DAMAGE = {
    "a weight that is NaN": set_weight(torch.tensor(torch.nan)),
    "an infinite weight": set_weight(torch.tensor(-torch.inf, dtype=torch.bfloat16)),
    "integer weights": set_weight(torch.tensor(1)),
    "truncated weights": truncate,
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights that are not safetensors": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 1000),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a shard missing": lambda folder: (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'
    ),
    "a damaged index": lambda folder: (folder / "model.safetensors.index.json").write_text("[1"),
    "a damaged config": lambda folder: (folder / "config.json").write_text("{"),
    "an empty config": lambda folder: (folder / "config.json").write_text("{}"),
    "a damaged tokenizer": lambda folder: (folder / "tokenizer.json").write_text('{"model": 1}'),
    "no tokenizer": lambda folder: [file.unlink() for file in folder.glob("token*")],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_model_is_refused_in_one_line(damage: Any, tmp_path: Path) -> None:
    damage(policy_folder(tmp_path / "model"))
    with pytest.raises(UserError) as caught:
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", rows()))
    assert str(caught.value).startswith("model.path=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [DAMAGE["truncated weights"], DAMAGE["a weight that is NaN"], DAMAGE["integer weights"]]
)
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_command_refuses_a_damaged_model_in_one_line(script: str, damage: Any, tmp_path: Path) -> None:
    damage(policy_folder(tmp_path / "model"))
    model = f"model={tmp_path / 'model'}" if script == "evaluate.py" else f"model.path={tmp_path / 'model'}"
    ended = run_train(*(["model=hf"] if script == "train.py" else []), model, script=script, cwd=tmp_path)
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert last.startswith("error: model.path=")
    assert all("checking the settings" in line for line in before)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("where", ["encoder", "filter.reward_model"])
@pytest.mark.parametrize("damage", [DAMAGE["truncated weights"], DAMAGE["a weight that is NaN"]])
def test_damaged_encoder_or_reward_model_is_refused_before_compute(where: str, damage: Any, tmp_path: Path) -> None:
    if where == "encoder":
        folder = tmp_path / "own"
        shutil.copytree(builtin_folder(), folder)
    else:
        folder = classifier_folder(tmp_path)
    damage(folder)
    choice = ["filter=oracle_reward"] if where != "encoder" else []
    with pytest.raises(UserError, match=r"^(encoder|reward_model)\.path=") as caught:
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", rows()), *choice, f"{where}.path={folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [DAMAGE["truncated weights"], DAMAGE["no tokenizer"], DAMAGE["a weight that is NaN"]]
)
def test_damaged_judge_is_refused_in_one_line(damage: Any, tmp_path: Path) -> None:
    damage(policy_folder(tmp_path / "judge"))
    name = "evaluation.benchmarks.grades"
    judge = (f"+benchmark@{name}=mt_bench", f"judge@{name}.judge=hf", f"{name}.judge.path={tmp_path / 'judge'}")
    with pytest.raises(UserError, match=r"^evaluation\.benchmarks\.grades: [^\n]*$"):
        configure_job(tmp_path, write_rows(tmp_path / "data.jsonl", rows()), *judge)


def test_system_message_refused_by_the_template_is_reported_before_compute(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows())
    with pytest.raises(UserError, match=r"^generator\.system: the row \w+: .*System role not supported"):
        configure_job(tmp_path, data, "generator.system='Be wrong.'")


def test_generator_model_of_another_tokenizer_is_reported_before_compute(tmp_path: Path) -> None:
    data, other = write_rows(tmp_path / "data.jsonl", rows()), policy_folder(tmp_path / "weak", seed=5)
    assert configure_job(tmp_path, data, f"generator.model={other}").generator.model == str(other)
    foreign = tokenizer()
    foreign.add_tokens(["<|more|>"])
    foreign.save_pretrained(str(other))
    with pytest.raises(UserError, match=r"^generator\.model=\S+: .*vocabulary"):
        configure_job(tmp_path, data, f"generator.model={other}")
    DAMAGE["a weight that is NaN"](other)
    with pytest.raises(UserError, match=r"^generator\.model=\S+: .*weight"):
        configure_job(tmp_path, data, f"generator.model={other}")


def reward_folder(folder: Path, template: str) -> Path:
    config = llama().config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(str(folder))
    tokenizer(template).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("where", ["filter", "benchmark", "judge"])
def test_reward_model_that_refuses_a_dialogue_is_reported_before_compute(where: str, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "reward", NO_SYSTEM)
    data = write_rows(tmp_path / "data.jsonl", rows(*([[SYSTEM, USER, ANSWER]] * 2)))
    name = "evaluation.benchmarks.own"
    choice = {
        "filter": ("filter=oracle_reward", f"filter.reward_model.path={folder}"),
        "benchmark": (f"+benchmark@{name}=reward", f"{name}.reward_model.path={folder}"),
        "judge": (
            f"+benchmark@{name}=probes",
            f"judge@{name}.judge=reward_model",
            f"{name}.judge.reward_model.path={folder}",
        ),
    }  # fmt: skip
    lenient = NO_SYSTEM.replace("System role not supported", "").replace("raise_exception('')", "''")
    lenient = lenient.replace("{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}", "{% if false %}")
    line = r"reward_model\.path=\S+: .* row \w+, .*System role"
    with pytest.raises(UserError, match=line):
        configure_job(tmp_path, data, *choice[where], template=lenient)


# --- errors that would come after all compute


@pytest.mark.parametrize(
    "settings",
    [
        {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6},  # the settings of Llama 2
        {"temperature": 0.0, "do_sample": True},
        {"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
        {},
    ],
    ids=str,
)
def test_policy_with_any_generation_config_is_saved(settings: dict[str, Any], tmp_path: Path) -> None:
    model = llama()
    model.generation_config = GenerationConfig(**settings)
    save_policy(tmp_path / "policy", model, tokenizer(), "# a card\n")
    GenerationConfig.from_pretrained(str(tmp_path / "policy")).validate(strict=True)


def test_valid_generation_config_is_unchanged() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.5)
    assert valid_generation_config(config) is config


def test_tokenizer_without_a_padding_token_pads_with_the_end_token(tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "policy")
    without_padding = tokenizer()
    without_padding.pad_token = None
    shutil.rmtree(folder / "tokenizer.json", ignore_errors=True)
    without_padding.save_pretrained(str(folder))
    loaded = load_tokenizer(folder)
    assert loaded.pad_token_id == loaded.eos_token_id
    assert torch.is_tensor(loaded.pad({"input_ids": [[1], [1, 2]]}, return_tensors="pt")["input_ids"])
