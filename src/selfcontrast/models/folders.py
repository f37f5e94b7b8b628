"""Folders of models, checked before anything is computed: what is missing, damaged or of another kind."""

import json
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError, printable


def check_weights(folder: Path, setting: str) -> None:
    """Open the header of every file of weights. Raises `UserError` for one that is missing or damaged."""
    from safetensors import safe_open

    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise UserError(f"{setting}={folder}: no *.safetensors there (other weight formats are not read)")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{setting}={folder}: {index.name} is damaged ({_first(error)}): copy it again") from error
        if lacking := sorted(str(name) for name in named if not (folder / str(name)).is_file()):
            raise UserError(f"{setting}={folder}: {lacking[0]} is missing, which {index.name} names: copy it again")
    for file in files:
        try:
            with safe_open(str(file), framework="np"):
                pass
        except Exception as error:  # the library has errors of its own
            raise UserError(f"{setting}={folder}: {file.name} is damaged ({_first(error)}): copy it again") from error


def check_causal(config: Any, setting: str) -> None:
    """Raise `UserError` for a config of something else than a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.model_type
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    encoder = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", True) is False
    if encoder or not (own_code or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        raise UserError(f"{setting}: a {kind} is no causal language model: choose one, such as a Llama or a Qwen")


def load_config(path: str, setting: str, **options: Any) -> Any:
    """The config of a model. Raises `UserError` where it cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{setting}={path}: its config cannot be loaded: {_first(error)}") from error


def tokenizer_at(path: str, setting: str, **options: Any) -> Any:
    """The tokenizer of a model, with a token to pad with. Raises `UserError` where it cannot be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{setting}={path}: its tokenizer cannot be loaded: {_first(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first(error: BaseException) -> str:
    """The first line of an error, or its name where it has none."""
    lines = str(error).strip().splitlines()
    return printable(lines[0])[:200] if lines else type(error).__name__
