"""Write the inputs of `+debug=tiny`: tiny random models, and a few rows in the formats of the public data sets.

python -m selfcontrast.debug debug
python train.py +experiment=paper data=hh_rlhf negatives=4 +debug=tiny

The rows are examples of the built-in data, in the columns, files and folders of hh-rlhf, UltraChat, UltraFeedback and
Nectar on the hub. These rows only show that an experiment runs.
"""

import argparse
import gzip
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcontrast.data.builtin import Builtin
from selfcontrast.data.example import Example

ROWS, HELD_OUT = 32, 16  # rows of the training split and of the test split
WIDTH = 32
VOCABULARY = 400

Row = dict[str, Any]


def write_debug(folder: Path, rows: int = ROWS, held_out: int = HELD_OUT) -> None:
    """Write the models `model` and `reward`, and the data sets under their hub names, into `folder`."""
    data = Builtin(rows, 8, held_out, noise=0.15, rejected_noise=0.3, two_turn=0.25, seed=1).load()
    for name, (write, row, splits) in DATA_SETS.items():
        for split, examples in ((splits[0], data["train"]), (splits[1], data["test"])):
            if split:
                write(folder / name, split, [row(example) for example in examples])
    write_models(folder, [text for e in data["train"] for text in (e.prompt[-1]["content"], e.target)])


def write_models(folder: Path, texts: Sequence[str]) -> None:
    """Write a causal model without a chat template, like a base model, and a reward model with one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    tokenizer = train_base_tokenizer(texts)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape))
        reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1, pad_token_id=0))
    model.save_pretrained(str(folder / "model"))
    tokenizer.save_pretrained(str(folder / "model"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    tokenizer.pad_token = "<unk>"
    reward.save_pretrained(str(folder / "reward"))
    tokenizer.save_pretrained(str(folder / "reward"))


def train_base_tokenizer(texts: Sequence[str]) -> Any:
    """Train a byte-level BPE with Mistral's three special tokens, without a padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


# --- one row of each data set


def dialogue(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the dialogue in hh-rlhf's format: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{speakers[message['role']]}: {message['content']}" for message in messages)


def hh_rlhf(example: Example) -> Row:
    return {"chosen": dialogue(chosen(example)), "rejected": dialogue(rejected(example))}


def ultrachat(example: Example) -> Row:
    return {"prompt": example.prompt[0]["content"], "prompt_id": example.id, "messages": chosen(example)}


def ultrafeedback(example: Example) -> Row:
    pair = {"chosen": chosen(example), "rejected": rejected(example)}
    return {**ultrachat(example), **pair, "score_chosen": 8.0, "score_rejected": 3.0}


def nectar(example: Example) -> Row:
    ranked = [(1.0, example.target), (7.0, example.rejected), (4.0, f"{example.rejected} {example.target}")]
    return {
        "prompt": dialogue(example.prompt) + "\n\nAssistant: ",
        "answers": [{"answer": text, "model": "none", "rank": rank} for rank, text in ranked],
        "turns": len(example.turns) or 1,
        "num_responses": 3,
        "source": ["none"],
        "good_natured": True,
    }


def chosen(example: Example) -> list[dict[str, Any]]:
    return [*map(dict, example.prompt), {"role": "assistant", "content": example.target}]


def rejected(example: Example) -> list[dict[str, Any]]:
    return [*map(dict, example.prompt), {"role": "assistant", "content": example.rejected}]


# --- one split of each data set


def json_lines(folder: Path, split: str, rows: Sequence[Row]) -> None:
    """Write one folder of hh-rlhf."""
    file = folder / "harmless-base" / f"{split}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))


def parquet(folder: Path, split: str, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "data" / f"{split}-00000-of-00001.parquet")


DATA_SETS: dict[str, tuple[Callable[[Path, str, Sequence[Row]], None], Callable[[Example], Row], tuple[str, str]]] = {
    "Anthropic/hh-rlhf": (json_lines, hh_rlhf, ("train", "test")),
    "HuggingFaceH4/ultrachat_200k": (parquet, ultrachat, ("train_sft", "test_sft")),
    "HuggingFaceH4/ultrafeedback_binarized": (parquet, ultrafeedback, ("train_prefs", "")),
    "berkeley-nest/Nectar": (parquet, nectar, ("train", "")),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m selfcontrast.debug", description="Write the inputs of +debug=tiny."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("debug"))
    folder = parser.parse_args(arguments).folder
    import transformers

    transformers.utils.logging.disable_progress_bar()
    write_debug(folder)
    sys.stdout.write(f"{folder}: a model, a reward model, and {len(DATA_SETS)} data sets of {ROWS} training rows\n")


if __name__ == "__main__":
    main()
