"""Reward models: sequence classifiers with one output that score a response to a dialogue."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfcontrast.constrained import Count, Text, check_numbers
from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import repeatable
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_weights, load_config, tokenizer_at
from selfcontrast.models.hub import resolve_commit
from selfcontrast.models.loading import DTYPES
from selfcontrast.models.truncation import Counts
from selfcontrast.models.weights import load_whole
from selfcontrast.store import NOT_IN_KEY, fields_of
from selfcontrast.store.content import note, noted

Response = tuple[Sequence[Message], str]
LAST_TOKEN, PUBLISHED = "last_token", "published"

Reward = Callable[[Sequence[Response]], NDArray[np.float32]]
"""A function from n responses, each as (dialogue so far, response), to rewards [n]."""


@dataclass(frozen=True)
class LoadedRewardModel:
    """A loaded reward model. `unread` counts the tokens of dialogue and response, and how many are truncated."""

    reward: Reward
    unread: Callable[[Sequence[Response]], Counts]

    def __call__(self, responses: Sequence[Response]) -> NDArray[np.float32]:
        return self.reward(responses)


@dataclass(frozen=True)
class RewardModel:
    """A Hugging Face sequence classifier with one output and a chat template, by hub name or folder.

    Attributes:
        max_tokens: maximum tokens of dialogue and response together; the beginning of a longer row is cut off.
        read_at: position at which the reward is read. "last_token": the end of the response. "published": the last
            position of the row padded to `max_tokens`, as in Starling-RM's published code. That is a padding token at
            position `max_tokens - 1`, which attends to dialogue and response. A longer row keeps its first token and
            its last ones, and the reward is read at its last token.
    """

    path: Text
    revision: Text | None
    dtype: str
    max_tokens: Count
    read_at: str
    trust_remote_code: bool
    batch_size: Count = field(metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        check_numbers(self, "reward_model")
        if self.dtype not in DTYPES:
            raise UserError(f"reward_model.dtype={self.dtype} is unknown. Use one of {', '.join(DTYPES)}.")
        if self.read_at not in (LAST_TOKEN, PUBLISHED):
            raise UserError(f"reward_model.read_at={self.read_at} is unknown. Use {LAST_TOKEN} or {PUBLISHED}.")

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that determine the rewards and, for a folder, the hash of its content."""
        settings = {**fields_of(self), "revision": self.commit}
        return {**settings, "path": note(self, Path(self.path)).hash} if Path(self.path).is_dir() else settings

    @cached_property
    def commit(self) -> str | None:
        """The commit of a hub model to load, or `revision` if its commit is unknown."""
        return resolve_commit(self.path, self.revision, "reward_model")

    def check(self) -> None:
        """Raise `UserError` for a missing folder, a config without exactly one output, or an unusable weight."""
        folder = Path(self.path)
        if folder.is_dir():
            self._config()
            check_weights(folder, "reward_model.path")
        elif self.path.startswith((".", "/", "~")):
            raise UserError(f"reward_model.path={self.path}: no such folder. Give a folder or a name on the hub.")

    def check_examples(self, examples: Sequence[Example]) -> None:
        """Render examples if the model is in a folder. Raise `UserError` for a dialogue that its template rejects."""
        from selfcontrast.data.template_checks import check_tokenizer  # cyclic if at the top of the file

        if Path(self.path).is_dir():
            check_tokenizer(self._tokenizer(), f"reward_model.path={self.path}", examples)

    def _tokenizer(self) -> Any:
        options: dict[str, Any] = {"revision": self.commit, "trust_remote_code": self.trust_remote_code}
        tokenizer = tokenizer_at(self.path, "reward_model.path", padding_side="right", **options)
        if tokenizer.chat_template:
            tokenizer.chat_template = repeatable(tokenizer.chat_template)
        return tokenizer

    @contextmanager
    def open(self, device: str) -> Iterator[Reward]:
        import torch

        model, tokenizer = self._load(device)

        @torch.inference_mode()
        def reward(responses: Sequence[Response]) -> NDArray[np.float32]:
            rows = [self._truncate(self._ids(tokenizer, dialogue, text)) for dialogue, text in responses]
            # Start with the longest rows, so that a lack of memory shows early.
            by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
            rewards = np.empty(len(rows), dtype=np.float32)
            for begin in range(0, len(rows), self.batch_size):
                batch = by_length[begin : begin + self.batch_size]
                padded = dict(tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt").to(device))
                if self.read_at == PUBLISHED:
                    padded = self._with_last_position(padded, tokenizer.pad_token_id)
                rewards[batch] = model(**padded).logits[:, 0].float().cpu().numpy()
            return rewards

        def unread(responses: Sequence[Response]) -> Counts:
            lengths = [len(self._ids(tokenizer, dialogue, text)) for dialogue, text in responses]
            return np.array([[length, max(0, length - self.max_tokens)] for length in lengths], dtype=np.int64)

        yield LoadedRewardModel(reward, unread)

    def _ids(self, tokenizer: Any, dialogue: Sequence[Message], text: str) -> list[int]:
        messages = [*dialogue, {"role": "assistant", "content": text.strip()}]  # all answers are stripped
        ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        return ids

    def _truncate(self, ids: list[int]) -> list[int]:
        """Truncate the tokens of a dialogue and its response."""
        if self.read_at == PUBLISHED and len(ids) > self.max_tokens:
            return [ids[0], *ids[len(ids) - self.max_tokens + 1 :]]
        return ids[-self.max_tokens :]

    def _with_last_position(self, padded: dict[str, Any], pad: int) -> dict[str, Any]:
        """Append a padding token at the last of `max_tokens` positions.

        No token attends to padding, so the padding between the response and this position need not be computed.
        """
        from torch.nn.functional import pad as extend

        ids, mask = padded["input_ids"], padded["attention_mask"]
        extra = int(ids.shape[1] < self.max_tokens)
        positions = mask.new_ones(ids.shape[0], ids.shape[1] + extra).cumsum(-1) - 1
        positions[:, -1] = self.max_tokens - 1
        ids, mask = extend(ids, (0, extra), value=pad), extend(mask, (0, extra))
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}

    def _config(self) -> Any:
        options: dict[str, Any] = {"revision": self.commit, "trust_remote_code": self.trust_remote_code}
        config = load_config(self.path, "reward_model.path", **options)
        if config.num_labels != 1:
            raise UserError(
                f"reward_model.path={self.path} has {config.num_labels} outputs. Use a sequence classifier with one "
                "(num_labels=1)."
            )
        return config

    def _load(self, device: str) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForSequenceClassification

        content = noted(self)
        options: dict[str, Any] = {"revision": self.commit, "trust_remote_code": self.trust_remote_code}
        config = self._config()
        tokenizer = self._tokenizer()
        if not tokenizer.chat_template:
            raise UserError(
                f"reward_model.path={self.path}: its tokenizer has no chat template to render dialogues. "
                "Add one to its folder."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        name, dtype = f"reward_model.path={self.path}", getattr(torch, self.dtype)
        model = load_whole(AutoModelForSequenceClassification, self.path, name, config=config, dtype=dtype, **options)
        if content:
            content.check("reward_model.path")
        # transformers reads the reward at the last token that is not padding. No token has the id -1, so with this
        # padding id it reads the end of the row.
        model.config.pad_token_id = -1 if self.read_at == PUBLISHED else tokenizer.pad_token_id
        return model.to(device).eval(), tokenizer
