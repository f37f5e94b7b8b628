"""Sampling from something else than the fine-tuned model on the training prompt: another model, a system message."""

from collections.abc import Sequence
from pathlib import Path

from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_causal, check_weights, load_config, tokenizer_at
from selfcontrast.store.content import Content

MODEL, SYSTEM = "generator.model", "generator.system"


def folder_content(model: str | None) -> str | None:
    """Return what decides the result of sampling from a folder: the hash of its files, not where they lie."""
    return Content.of(Path(model)).hash if model and Path(model).is_dir() else model


def check_folder(model: str) -> None:
    """Raise `UserError` for what is no folder of a causal model with whole weights."""
    if not (Path(model) / "config.json").is_file():
        raise UserError(
            f"{MODEL}={model}: no config.json there. Give a folder in Hugging Face's format: a policy of the store, or "
            "a model of the hub after hf download NAME --local-dir FOLDER"
        )
    check_causal(load_config(model, MODEL, local_files_only=True), f"{MODEL}={model}")
    check_weights(Path(model), MODEL)


def check_same_tokenizer(own: Renderer, model: str) -> None:
    """Raise `UserError` where the folder's token ids are not the fine-tuned model's, or it ends answers otherwise."""
    other = tokenizer_at(model, MODEL, local_files_only=True)
    if other.get_vocab() != own.tokenizer.get_vocab():
        raise UserError(
            f"{MODEL}={model}: its vocabulary is not the fine-tuned model's, and candidates are trained on as the "
            "tokens that were sampled. Give a model with the same tokenizer, or its texts through generator=import"
        )
    try:
        ends = Renderer(other).end_ids
    except UserError as error:
        raise UserError(f"{MODEL}={model}: {error}") from error
    if ends != own.end_ids:
        raise UserError(
            f"{MODEL}={model}: its answers end with the tokens {sorted(ends)}, those of the fine-tuned model with "
            f"{sorted(own.end_ids)}. Give its tokenizer the fine-tuned model's chat template"
        )


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
