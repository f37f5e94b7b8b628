"""Sampling from something else than the fine-tuned model on the training prompt: another model, a system message."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_causal, check_weights, load_config, tokenizer_at
from selfcontrast.models.hub import downloaded, is_on_hub, pinned
from selfcontrast.store.content import Content

MODEL, REVISION, SYSTEM = "generator.model", "generator.model_revision", "generator.system"
CONFIG = "config.json"


@dataclass(frozen=True)
class OtherModel:
    """A model that candidates are sampled from in place of the fine-tuned one.

    Attributes:
        path: a folder in Hugging Face's format, an artifact of the store that holds a `model`, or a name on the hub.
        revision: on the hub; None for its newest commit.
    """

    path: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """The folder of its files; None for a name on the hub."""
        own = Path(self.path)
        inner = own / "model"  # of an artifact
        found = inner if not (own / CONFIG).is_file() and (inner / CONFIG).is_file() else own
        return None if is_on_hub(self.path) else found

    @property
    def commit(self) -> str | None:
        return pinned(self.path, self.revision, MODEL, revision_setting=REVISION)

    def content(self) -> dict[str, Any]:
        """Return what decides the result of sampling from it: the hash of a folder's files, or name and commit."""
        if (folder := self.folder) is not None:
            return {"model": Content.of(folder).hash if folder.is_dir() else self.path}
        return {"model": self.path, "model_revision": self.commit}

    def check(self) -> None:
        """Raise `UserError` for what is no causal model. The weights of a folder are looked at, too."""
        if (folder := self.folder) is None:
            check_causal(load_config(self.path, MODEL, revision=self.commit), f"{MODEL}={self.path}")
            return
        if self.revision is not None:
            raise UserError(f"{REVISION}={self.revision}: {MODEL}={self.path} is a folder and has none: set it to null")
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{MODEL}={self.path}: no config.json there. Give a folder in Hugging Face's format, an artifact of "
                "the store that holds a model, or a name on the hub (OWNER/MODEL)"
            )
        check_causal(load_config(str(folder), MODEL, local_files_only=True), f"{MODEL}={self.path}")
        check_weights(folder, MODEL)

    def check_tokenizer(self, own: Renderer) -> None:
        """Raise `UserError` where its token ids are not the fine-tuned model's, or it ends answers otherwise."""
        if (folder := self.folder) is None:
            other = tokenizer_at(self.path, MODEL, revision=self.commit)
        else:
            other = tokenizer_at(str(folder), MODEL, local_files_only=True)
        if other.get_vocab() != own.tokenizer.get_vocab():
            raise UserError(
                f"{MODEL}={self.path}: its vocabulary is not the fine-tuned model's, and candidates are trained on as "
                "the tokens that were sampled. Give a model with the same tokenizer, or its texts through "
                "generator=import"
            )
        try:
            ends = Renderer(other).end_ids
        except UserError as error:
            raise UserError(f"{MODEL}={self.path}: {error}") from error
        if ends != own.end_ids:
            raise UserError(
                f"{MODEL}={self.path}: its answers end with the tokens {sorted(ends)}, those of the fine-tuned model "
                f"with {sorted(own.end_ids)}. Give its tokenizer the fine-tuned model's chat template"
            )

    def files(self) -> Path:
        """Return its folder, downloaded where it is on the hub. Raise `UserError` where its weights are damaged."""
        folder = self.folder or downloaded(self.path, self.commit, MODEL)
        check_weights(folder, MODEL)
        return folder


def instructed(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return the dialogue after a system message, which takes the dialogue's own into it, below its text."""
    if system is None:
        return list(messages)
    own, rest = (messages[:1], messages[1:]) if messages and messages[0]["role"] == "system" else ([], messages)
    text = "\n\n".join([system, *(message["content"] for message in own)])
    return [Message(role="system", content=text), *rest]


def check_system(renderer: Renderer, example: Example, system: str) -> None:
    """Raise `UserError` where the chat template refuses the system message, or leaves it out."""
    try:
        rendered = renderer.prompt(instructed(example.prompt, system))
    except UserError as error:
        raise UserError(f"{SYSTEM}: the row {example.id}: {error}. Set it to null, or give another template") from error
    if rendered == renderer.prompt(example.prompt):
        raise UserError(
            f"{SYSTEM}: the chat template leaves a system message out, so nothing would change: set it to null"
        )
