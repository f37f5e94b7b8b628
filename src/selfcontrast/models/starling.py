"""Convert the paper's reward model, Starling-RM-7B-alpha, to a folder that `RewardModel` reads.

The model is published as `pytorch_model.bin`, the weights of a Llama-2-7b-chat body and of a head with one output. No
class of transformers loads this file. This command writes the same weights as a sequence classifier in safetensors,
with the tokenizer and the chat template of the reference implementation:

    python -m selfcontrast.models.starling Starling-RM-7B-alpha --body Llama-2-7b-chat-hf \\
        --output models/Starling-RM-7B-alpha

The inputs are folders from the hub: berkeley-nest/Starling-RM-7B-alpha and meta-llama/Llama-2-7b-chat-hf.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.models.loading import DTYPES

# Each turn of the user begins with <s>, in addition to the <s> at the beginning of the dialogue.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
BODY_PREFIXES = ("transformer.", "model.model.")  # for the body's weights: the file holds one copy, or two
HEAD = "v_head.weight"


def convert(weights: Path, body: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Write the sequence classifier to `output`.

    Args:
        weights: folder with one file of weights, *.bin.
        body: folder with the config and the tokenizer of the body.

    Raises:
        UserError: if a file is missing, or the weights do not match the body.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification

    files = sorted(weights.glob("*.bin"))
    if len(files) != 1:
        raise UserError(f"{weights} has {len(files)} files *.bin. Give the folder of the reward model, which has one.")
    try:
        config = AutoConfig.from_pretrained(str(body), num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(str(body))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--body {body}: cannot be read ({str(error).strip().splitlines()[0]}). Give a folder with a config and a "
            "tokenizer."
        ) from error
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = TEMPLATE
    config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model = LlamaForSequenceClassification(config)
    state = classifier_weights(torch.load(files[0], map_location="cpu", weights_only=True, mmap=True))
    missing, unexpected = model.state_dict().keys() - state.keys(), state.keys() - model.state_dict().keys()
    if missing or unexpected:
        names = ", ".join(sorted(missing | unexpected)[:3])
        raise UserError(f"{files[0]} does not hold the weights of {body} ({names} …). Give the matching folder.")
    torch_dtype = getattr(torch, dtype)
    classifier = LlamaForSequenceClassification.from_pretrained(
        None, config=config, state_dict=state, torch_dtype=torch_dtype
    )
    classifier.save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


def classifier_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the weights of body and head as in a sequence classifier, and omit buffers."""
    prefixes = (prefix for prefix in BODY_PREFIXES if any(name.startswith(prefix) for name in weights))
    prefix = next(prefixes, BODY_PREFIXES[0])
    body = {
        f"model.{name.removeprefix(prefix)}": value
        for name, value in weights.items()
        if name.startswith(prefix) and not name.endswith("inv_freq")
    }
    return {**body, **({"score.weight": weights[HEAD]} if HEAD in weights else {})}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m selfcontrast.models.starling", description="Convert Starling-RM.")
    parser.add_argument("weights", type=Path, help="folder of Starling-RM-7B-alpha")
    parser.add_argument("--body", type=Path, required=True, help="folder of Llama-2-7b-chat-hf")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    args = parser.parse_args(arguments)
    try:
        convert(args.weights, args.body, args.output, args.dtype)
    except UserError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{args.output}\n")


if __name__ == "__main__":
    main()
