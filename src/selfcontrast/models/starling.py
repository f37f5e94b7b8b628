"""The paper's reward model as one that `RewardModel` reads: Starling-RM-7B-alpha, converted once.

It is published as weights of a Llama-2-7b-chat body with a head of one output (`pytorch_model.bin`), which no class of
transformers loads. This writes the same weights as a sequence classifier, in safetensors, with the tokenizer and the
rendering that the reference implementation scores dialogues in:

    python -m selfcontrast.models.starling Starling-RM-7B-alpha --body Llama-2-7b-chat-hf \\
        --output models/Starling-RM-7B-alpha

The first two are folders as the hub has them (berkeley-nest/Starling-RM-7B-alpha, meta-llama/Llama-2-7b-chat-hf).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.models.loading import DTYPES

# Each turn of the user begins with a token <s>, beside the one that the tokenizer there puts before the whole.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BODIES = ("transformer.", "model.model.")  # prefixes of the body's weights: it is in the file once or twice
HEAD = "v_head.weight"


def convert(weights: Path, body: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Writes the sequence classifier to `output`.

    Args:
        weights: a folder with one file of weights, *.bin.
        body: a folder with the config and the tokenizer of the body.

    Raises:
        UserError: where a folder lacks them, or the weights are not the body's.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    files = sorted(weights.glob("*.bin"))
    if len(files) != 1:
        raise UserError(f"{weights}: one file *.bin with the reward model's weights; there are {len(files)}")
    try:
        config = AutoConfig.from_pretrained(str(body), num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(str(body))
    except (OSError, ValueError) as error:
        raise UserError(f"--body {body}: {str(error).strip().splitlines()[0]}") from error
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = TEMPLATE
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = LlamaForSequenceClassification(config)
    found = renamed(torch.load(files[0], map_location="cpu", weights_only=True, mmap=True))
    lacking, foreign = model.state_dict().keys() - found.keys(), found.keys() - model.state_dict().keys()
    if lacking or foreign:
        raise UserError(f"{files[0]}: not the weights of {body}: {', '.join(sorted(lacking | foreign)[:3])} …")
    torch_dtype = getattr(torch, dtype)
    own = LlamaForSequenceClassification.from_pretrained(None, config=config, state_dict=found, torch_dtype=torch_dtype)
    own.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


def renamed(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The body's weights and the head's by the names of a sequence classifier; buffers are left out."""
    prefix = next((prefix for prefix in BODIES if any(name.startswith(prefix) for name in weights)), BODIES[0])
    found = {
        f"model.{name.removeprefix(prefix)}": value
        for name, value in weights.items()
        if name.startswith(prefix) and not name.endswith("inv_freq")
    }
    return {**found, **({"score.weight": weights[HEAD]} if HEAD in weights else {})}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m selfcontrast.models.starling", description="Converts Starling-RM.")
    parser.add_argument("weights", type=Path, help="folder of Starling-RM-7B-alpha")
    parser.add_argument("--body", type=Path, required=True, help="folder of Llama-2-7b-chat-hf")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    told = parser.parse_args(arguments)
    try:
        convert(told.weights, told.body, told.output, told.dtype)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{told.output}\n")


if __name__ == "__main__":
    main()
