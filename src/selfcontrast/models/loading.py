"""Load base models from the hub, a folder, or from scratch; read and write policy folders.

Weights are read from and written to safetensors only. A policy folder loads with
`AutoModelForCausalLM.from_pretrained`, without this package.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from selfcontrast.constrained import Count, Positive, Text, check_numbers
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_causal, check_weights, load_config, tokenizer_at
from selfcontrast.models.hub import resolve_commit
from selfcontrast.models.weights import load_whole
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import folder_hash as folder_hash
from selfcontrast.store.content import note, noted

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
MIN_VOCABULARY = 261  # all bytes and five special tokens
MAX_PARAMETERS = 10**11  # maximum for a model from scratch
TEMPLATES = Path(__file__).parents[1] / "data" / "templates"


class Model(Protocol):
    """The base model of a job."""

    dtype: str

    def fingerprint(self) -> dict[str, Any]: ...

    def check(self) -> None:
        """Raise `UserError` for mistakes that can be found before any compute."""

    def positions(self) -> int | None:
        """Return the number of positions of the model; None if unknown."""

    def tokenizer(self) -> Any:
        """Return a tokenizer with the model's chat template. A model from scratch trains it in `start`."""

    def skeleton(self) -> Any:
        """Return the model's modules without weights, on torch's meta device."""

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        """Return (model, tokenizer) to fine-tune. For a model from scratch the tokenizer is trained on `texts`."""


@dataclass(frozen=True)
class FromScratch:
    """A Llama with random weights and a byte-level BPE tokenizer trained on the training texts."""

    vocabulary: Annotated[Count, Field(ge=MIN_VOCABULARY, le=10_000_000)]
    hidden: Count
    layers: Count
    heads: Count
    intermediate: Count
    max_length: Count
    init_std: Annotated[Positive, Field(le=1000)]
    chat_template: Text
    dtype: str

    def __post_init__(self) -> None:
        check_numbers(self, "model")
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise UserError(
                f"model.hidden={self.hidden} cannot be split into {self.heads} heads of an even size. "
                f"Use a multiple of {2 * self.heads}."
            )
        weights = self.vocabulary * self.hidden + self.layers * self.hidden * (4 * self.hidden + 3 * self.intermediate)
        if weights > MAX_PARAMETERS:
            raise UserError(
                f"model.hidden={self.hidden} gives {weights:.1e} parameters. Lower model.hidden or model.layers."
            )
        check_dtype(self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "chat_template": self._template}

    @cached_property
    def _template(self) -> str:
        return template_text(self.chat_template)

    def check(self) -> None:
        _ = self._template

    def positions(self) -> int | None:
        return self.max_length

    def tokenizer(self) -> Any:
        tokenizer = train_tokenizer([], self.vocabulary, self.max_length)
        tokenizer.chat_template = template_text(self.chat_template)
        return tokenizer

    def skeleton(self) -> Any:
        import torch
        from transformers import LlamaForCausalLM

        with torch.device("meta"):
            return LlamaForCausalLM(self._config(self.vocabulary, None, None))

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        import torch
        from transformers import LlamaForCausalLM

        tokenizer = train_tokenizer(texts, self.vocabulary, self.max_length)
        tokenizer.chat_template = self._template
        config = self._config(len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
        return model.to(getattr(torch, self.dtype)), tokenizer

    def _config(self, vocabulary: int, end: int | None, padding: int | None) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.intermediate,
            max_position_embeddings=self.max_length,
            initializer_range=self.init_std,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=padding,
        )


@dataclass(frozen=True)
class Pretrained:
    """A causal model on the Hugging Face hub, or a folder in its format.

    Attributes:
        chat_template: a file, a text, or a name in the package's `data/templates`; None for the tokenizer's own.
        added_tokens: special tokens that the template needs and the tokenizer lacks.
    """

    path: Text
    revision: Text | None
    chat_template: Text | None
    added_tokens: list[Text]
    dtype: str
    trust_remote_code: bool
    local_files_only: bool = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("in_key", True)}
        settings |= {"chat_template": self._template, "revision": self.commit}
        if Path(self.path).is_dir():  # a folder is identified by its content, not its path
            settings["path"] = note(self, Path(self.path)).hash
        return settings

    @cached_property
    def _template(self) -> str | None:
        return template_text(self.chat_template) if self.chat_template else None

    @cached_property
    def commit(self) -> str | None:
        """The commit of a hub model to load, or `revision` if its commit is unknown."""
        return resolve_commit(self.path, self.revision, "model", self.local_files_only)

    def check(self) -> None:
        """Check the folder, its weights and the chat template before anything is computed."""
        from selfcontrast.data.rendering import Renderer

        folder = Path(self.path)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"model.path={self.path}: no config.json there. Give a folder in Hugging Face's format."
                )
            check_causal(load_config(self.path, "model.path", **self._options()), f"model.path={self.path}")
            if not list(folder.glob("*.safetensors")):
                raise UserError(f"model.path={self.path}: no *.safetensors there. Save the model as safetensors.")
        elif self.path.startswith((".", "/", "~")):
            raise UserError(f"model.path={self.path}: no such folder. Give a folder or a name on the hub.")
        Renderer(self.tokenizer())
        if folder.is_dir():
            check_weights(folder, "model.path")

    def skeleton(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(self.path, **self._options())
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"model.path={self.path}: its config cannot be loaded ({reason}). Copy the model again, or use another."
            ) from error

    def positions(self) -> int | None:
        """Return the number of positions in the model's config; None if it has none, or the model is on the hub."""
        from transformers import AutoConfig

        if not Path(self.path).is_dir():
            return None
        config = AutoConfig.from_pretrained(self.path, **self._options()).get_text_config()
        count: int | None = getattr(config, "max_position_embeddings", None)
        return count

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        content = noted(self)
        model, tokenizer = load_model(self.path, self.dtype, **self._options()), self.tokenizer()
        if content:
            content.check("model.path")
        if (size := len(tokenizer)) > (rows := model.get_input_embeddings().weight.shape[0] + len(self.added_tokens)):
            raise UserError(
                f"model.path={self.path}: its tokenizer has {size} tokens, but its embeddings have {rows} rows. "
                "Give a model and a tokenizer that belong together."
            )
        if self.added_tokens:
            initialise_embeddings(model, tokenizer.convert_tokens_to_ids(self.added_tokens), len(tokenizer))
        return model, tokenizer

    def _options(self) -> dict[str, Any]:
        return {
            "revision": self.commit,
            "trust_remote_code": self.trust_remote_code,
            "local_files_only": self.local_files_only,
        }

    def tokenizer(self) -> Any:
        tokenizer = tokenizer_at(self.path, "model.path", **self._options())
        if known := [token for token in self.added_tokens if token in tokenizer.get_vocab()]:
            raise UserError(
                f"model.added_tokens: the tokenizer of {self.path} already has {', '.join(known)}. Remove them."
            )
        tokenizer.add_tokens(self.added_tokens, special_tokens=True)
        if self._template:
            tokenizer.chat_template = self._template
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def load_model(path: str | Path, dtype: str = "float32", **options: Any) -> Any:
    """Load a causal model from a hub name or folder onto the CPU, from safetensors only.

    Raises:
        UserError: if a weight is missing in the files.
    """
    import torch
    from transformers import AutoModelForCausalLM

    return load_whole(AutoModelForCausalLM, path, f"model={path}", dtype=getattr(torch, dtype), **options)


def initialise_embeddings(model: Any, tokens: Sequence[int], size: int) -> None:
    """Resize embeddings and output layer to `size` tokens; set new tokens to the mean of the others.

    openchat's tools do the same.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if size > rows:
        model.resize_token_embeddings(size, mean_resizing=False)
    new = sorted(tokens)
    old = [token for token in range(rows) if token not in new]
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[new] = layer.weight[old].float().mean(dim=0).to(layer.weight.dtype)


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a policy folder, with a padding token."""
    return tokenizer_at(str(path), "model", local_files_only=True)


def save_policy(folder: Path, model: Any, tokenizer: Any, card: str) -> None:
    """Write a Hugging Face folder: weights, tokenizer with chat template, generation config and model card."""
    from selfcontrast.data.rendering import Renderer
    from selfcontrast.models.shared_prompt import is_shared

    model.generation_config = valid_generation_config(model.generation_config)
    model.generation_config.eos_token_id = sorted(Renderer(tokenizer).end_ids)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if is_shared(model):
        model.set_attn_implementation("sdpa")  # without this package, shared-prompt attention is unknown
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(card)


def valid_generation_config(original: Any) -> Any:
    """Return a generation config that can be saved. Some older ones set sampling options without do_sample."""
    from copy import deepcopy
    from tempfile import TemporaryDirectory

    from transformers import GenerationConfig

    sampling = deepcopy(original)
    sampling.do_sample = True
    special = {name: getattr(original, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for config in (original, sampling):
        try:
            with TemporaryDirectory() as scratch:  # saving checks more than `validate`
                config.save_pretrained(scratch)
                GenerationConfig.from_pretrained(scratch).validate(strict=True)
        except Exception:  # the error class differs between versions of transformers
            continue
        return config
    return GenerationConfig(**special)


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> Any:
    """Train a byte-level BPE tokenizer; turns are marked with `<|user|>`, `<|assistant|>` and `<|end|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def template_text(path_or_text: str) -> str:
    """Return a chat template given as a text (with braces), as a name in `TEMPLATES`, or as a file's path."""
    if "{" in path_or_text:
        return path_or_text
    if (packaged := TEMPLATES / f"{path_or_text}.jinja").is_file():
        return packaged.read_text(encoding="utf-8").strip("\n")
    try:
        return Path(path_or_text).read_text(encoding="utf-8-sig")  # without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.chat_template={path_or_text} cannot be read ({error}). Give a file, a template's name, or a text."
        ) from error


def check_dtype(dtype: str) -> None:
    """Raise `UserError` for an unsupported dtype of the weights."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype} is not supported. Use one of {', '.join(DTYPES)}.")
