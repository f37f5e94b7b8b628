"""A base model from a hub, a folder, or from scratch; and the folders that policies are exchanged as.

Weights are read from and written to safetensors only. A policy folder loads with
`AutoModelForCausalLM.from_pretrained` and needs nothing of this package.
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
from selfcontrast.models.hub import pinned
from selfcontrast.models.weights import load_whole
from selfcontrast.store import NOT_IN_KEY
from selfcontrast.store.content import folder_hash as folder_hash
from selfcontrast.store.content import note, noted

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
LEAST_VOCABULARY = 261  # all bytes and five special tokens
MOST_PARAMETERS = 10**11  # of a model from scratch
TEMPLATES = Path(__file__).parents[1] / "data" / "templates"


class Model(Protocol):
    """What training starts from."""

    dtype: str

    def fingerprint(self) -> dict[str, Any]: ...

    def check(self) -> None:
        """Raises `UserError` for what can be known before any compute."""

    def positions(self) -> int | None:
        """Tokens that it has positions for; None where nobody says."""

    def tokenizer(self) -> Any:
        """A tokenizer that renders dialogues as the model's; one that is trained knows no texts yet."""

    def skeleton(self) -> Any:
        """The model's modules without weights, on torch's meta device."""

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        """(model, tokenizer) to begin fine-tuning with; `texts` are what a tokenizer may be trained on."""


@dataclass(frozen=True)
class FromScratch:
    """A Llama with random weights and a byte-level BPE tokenizer trained on the training texts."""

    vocabulary: Annotated[Count, Field(ge=LEAST_VOCABULARY, le=10_000_000)]
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
            raise UserError(f"model.hidden={self.hidden} does not give {self.heads} heads of an even size each")
        weights = self.vocabulary * self.hidden + self.layers * self.hidden * (4 * self.hidden + 3 * self.intermediate)
        if weights > MOST_PARAMETERS:
            raise UserError(
                f"model.hidden={self.hidden}: {weights:.1e} parameters from scratch; lower it, or the layers"
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
    """Any causal model of the Hugging Face hub, or a folder in its format.

    Attributes:
        chat_template: a file, a text, or the name of one of the package's `data/templates`; None for the tokenizer's.
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
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("in_key", True)}
        own |= {"chat_template": self._template, "revision": self.commit}
        if Path(self.path).is_dir():  # a folder's content decides, not where it lies
            own["path"] = note(self, Path(self.path)).hash
        return own

    @cached_property
    def _template(self) -> str | None:
        return template_text(self.chat_template) if self.chat_template else None

    @cached_property
    def commit(self) -> str | None:
        """Of a model on the hub the commit that is loaded, where somebody knows it; else `revision`."""
        return pinned(self.path, self.revision, "model", self.local_files_only)

    def check(self) -> None:
        """The folder, its weights' format, and the chat template, before anything is computed."""
        from selfcontrast.data.rendering import Renderer

        folder = Path(self.path)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise UserError(f"model.path={self.path}: no config.json there, so it is not a Hugging Face folder")
            check_causal(load_config(self.path, "model.path", **self._options()), f"model.path={self.path}")
            if not list(folder.glob("*.safetensors")):
                raise UserError(f"model.path={self.path}: no *.safetensors there (other weight formats are not read)")
        elif self.path.startswith((".", "/", "~")):
            raise UserError(f"model.path={self.path}: no such folder")
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
            first = str(error).strip().splitlines()[0]
            raise UserError(f"model.path={self.path}: its config cannot be loaded: {first}") from error

    def positions(self) -> int | None:
        """Tokens that the model has positions for, by its config; None where that names none, or is not here yet."""
        from transformers import AutoConfig

        if not Path(self.path).is_dir():
            return None
        config = AutoConfig.from_pretrained(self.path, **self._options()).get_text_config()
        found: int | None = getattr(config, "max_position_embeddings", None)
        return found

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        content = noted(self)
        model, tokenizer = load_model(self.path, self.dtype, **self._options()), self.tokenizer()
        if content:
            content.check("model.path")
        if (size := len(tokenizer)) > (rows := model.get_input_embeddings().weight.shape[0] + len(self.added_tokens)):
            raise UserError(
                f"model.path={self.path}: its tokenizer has {size} tokens and its embeddings {rows} rows: "
                "they belong to different models"
            )
        if self.added_tokens:
            give_embeddings(model, tokenizer.convert_tokens_to_ids(self.added_tokens), len(tokenizer))
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
            raise UserError(f"model.added_tokens: the tokenizer of {self.path} has {', '.join(known)} already")
        tokenizer.add_tokens(self.added_tokens, special_tokens=True)
        if self._template:
            tokenizer.chat_template = self._template
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def load_model(path: str | Path, dtype: str = "float32", **options: Any) -> Any:
    """Load a causal model from a hub name or folder, on the CPU, from safetensors alone.

    Raises `UserError` unless its files hold all of its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    return load_whole(AutoModelForCausalLM, path, f"model={path}", dtype=getattr(torch, dtype), **options)


def give_embeddings(model: Any, tokens: Sequence[int], size: int) -> None:
    """Makes room for `size` tokens, and lets these begin as the mean of all others, in the embeddings and the output
    layer, as openchat's tools do."""
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
    """The tokenizer of a policy folder, with a token to pad with."""
    return tokenizer_at(str(path), "the model in", local_files_only=True)


def save_policy(folder: Path, model: Any, tokenizer: Any, card: str) -> None:
    """Weights, tokenizer with its chat template, generation config and model card: a Hugging Face folder."""
    from selfcontrast.data.rendering import Renderer
    from selfcontrast.models.shared_prompt import is_shared

    model.generation_config = valid_generation_config(model.generation_config)
    model.generation_config.eos_token_id = sorted(Renderer(tokenizer).end_ids)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if is_shared(model):
        model.set_attn_implementation("sdpa")  # ours must not be asked for by whoever loads the folder
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").write_text(card)


def valid_generation_config(given: Any) -> Any:
    """The generation config in a form that can be saved: those of older models sample without saying so."""
    from copy import deepcopy
    from tempfile import TemporaryDirectory

    from transformers import GenerationConfig

    sampling = deepcopy(given)
    sampling.do_sample = True
    special = {name: getattr(given, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for config in (given, sampling):
        try:
            with TemporaryDirectory() as scratch:  # what is checked at saving is not checked by `validate` alone
                config.save_pretrained(scratch)
                GenerationConfig.from_pretrained(scratch).validate(strict=True)
        except Exception:  # transformers has had several kinds of errors for it
            continue
        return config
    return GenerationConfig(**special)


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> Any:
    """A byte-level BPE of `vocabulary` tokens; turns are marked with `<|user|>`, `<|assistant|>` and `<|end|>`."""
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
    """A chat template given as a file's path, by the name of one of `TEMPLATES`, or as it stands, with braces."""
    if "{" in path_or_text:
        return path_or_text
    if (own := TEMPLATES / f"{path_or_text}.jinja").is_file():
        return own.read_text(encoding="utf-8").strip("\n")
    try:
        return Path(path_or_text).read_text(encoding="utf-8-sig")  # a mark of the byte order is no part of a prompt
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template={path_or_text}: cannot be read ({error})") from error


def check_dtype(dtype: str) -> None:
    """Raise `UserError` for a type that weights are not computed with here."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype}: one of {', '.join(DTYPES)}")
