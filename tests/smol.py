"""Share SmolLM2 between tests: load it once per process, and write it as a policy folder."""

from functools import cache
from pathlib import Path
from typing import Any

from selfcontrast.models.loading import save_policy
from selfcontrast.models.smollm2 import SmolLM2

SMOLLM2 = SmolLM2(chat_template=None, dtype="float32")
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]


@cache
def model_and_tokenizer() -> tuple[Any, Any]:
    """Return (model, tokenizer). The model is shared: copy it before changing it."""
    return SMOLLM2.start([], 0)


def smollm2_folder(folder: Path) -> Path:
    """Write a policy as the stage sft does with sft=none."""
    save_policy(folder, *model_and_tokenizer(), "# a card\n")
    return folder
