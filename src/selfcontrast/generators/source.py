"""Sample from another model than the fine-tuned one, or with a system message."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_causal, check_weights, load_config, tokenizer_at
from selfcontrast.models.hub import download_model, is_hub_name, resolve_commit
from selfcontrast.store.content import Content

MODEL, REVISION, SYSTEM = "generator.model", "generator.model_revision", "generator.system"
CONFIG = "config.json"


@dataclass(frozen=True)
class OtherModel:
    """A model other than the fine-tuned one to sample candidates from.

    Attributes:
        path: a folder in Hugging Face's format, an artifact of the store that contains a `model`, or a name on the Hub.
        revision: commit, tag or branch on the Hub; None for the newest commit.
    """

    path: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """The folder of the model's files; None for a name on the Hub."""
        folder = Path(self.path)
        inner = folder / "model"  # the model's folder in an artifact of the store
        nested = not (folder / CONFIG).is_file() and (inner / CONFIG).is_file()
        return None if is_hub_name(self.path) else (inner if nested else folder)

    @property
    def commit(self) -> str | None:
        """The commit on the Hub that is loaded; None if it is unknown."""
        return resolve_commit(self.path, self.revision, MODEL, revision_setting=REVISION)

    def content(self) -> dict[str, Any]:
        """Return the model's part of the artifact key: the hash of a folder's files, or name and commit."""
        if (folder := self.folder) is not None:
            return {"model": Content.of(folder).hash if folder.is_dir() else self.path}
        return {"model": self.path, "model_revision": self.commit}

    def check(self) -> None:
        """Raise `UserError` unless it is a causal model; a folder must also have complete weights."""
        if (folder := self.folder) is None:
            check_causal(load_config(self.path, MODEL, revision=self.commit), f"{MODEL}={self.path}")
            return
        if self.revision is not None:
            raise UserError(f"{REVISION}={self.revision}: {MODEL}={self.path} is a folder. Set {REVISION}=null.")
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{MODEL}={self.path} has no config.json. Give a folder in Hugging Face's format, an artifact of the "
                "store with a model, or a name on the Hub (OWNER/MODEL)."
            )
        check_causal(load_config(str(folder), MODEL, local_files_only=True), f"{MODEL}={self.path}")
        check_weights(folder, MODEL)

    def check_tokenizer(self, renderer: Renderer) -> None:
        """Raise `UserError` if the model's token ids or end tokens differ from the fine-tuned model's."""
        if (folder := self.folder) is None:
            other = tokenizer_at(self.path, MODEL, revision=self.commit)
        else:
            other = tokenizer_at(str(folder), MODEL, local_files_only=True)
        if other.get_vocab() != renderer.tokenizer.get_vocab():
            raise UserError(
                f"{MODEL}={self.path}: its vocabulary differs from the fine-tuned model's, and training uses the "
                "sampled tokens. Give a model with the same tokenizer, or import its texts with generator=import."
            )
        try:
            ends = Renderer(other).end_ids
        except UserError as error:
            raise UserError(f"{MODEL}={self.path}: {error}") from error
        if ends != renderer.end_ids:
            raise UserError(
                f"{MODEL}={self.path}: its answers end with the tokens {sorted(ends)}, but the fine-tuned model's "
                f"end with {sorted(renderer.end_ids)}. Give its tokenizer the fine-tuned model's chat template."
            )

    def files(self) -> Path:
        """Return the model's folder, downloaded if it is on the Hub. Raise `UserError` for damaged weights."""
        folder = self.folder or download_model(self.path, self.commit, MODEL)
        check_weights(folder, MODEL)
        return folder


def with_system_message(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return the dialogue with a system message: `system`, followed by the dialogue's own, if any."""
    if system is None:
        return list(messages)
    existing, rest = (messages[:1], messages[1:]) if messages and messages[0]["role"] == "system" else ([], messages)
    text = "\n\n".join([system, *(message["content"] for message in existing)])
    return [Message(role="system", content=text), *rest]


def check_system(renderer: Renderer, example: Example, system: str) -> None:
    """Raise `UserError` if the chat template refuses or ignores the system message."""
    try:
        rendered = renderer.prompt(with_system_message(example.prompt, system))
    except UserError as error:
        raise UserError(f"{SYSTEM}: the row {example.id}: {error} Or set {SYSTEM}=null.") from error
    if rendered == renderer.prompt(example.prompt):
        raise UserError(f"{SYSTEM}: the chat template ignores system messages. Set it to null.")
