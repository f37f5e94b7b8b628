"""Sample from another model than the fine-tuned one, or with a system message."""

from collections.abc import Sequence
from pathlib import Path

from selfcontrast.data.example import Example, Message
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.folders import check_causal, check_weights, load_config, tokenizer_at
from selfcontrast.store.content import Content

MODEL, SYSTEM = "generator.model", "generator.system"


def folder_content(model: str | None) -> str | None:
    """Return the hash of the folder's files, which determines the samples; its location does not."""
    return Content.of(Path(model)).hash if model and Path(model).is_dir() else model


def check_folder(model: str) -> None:
    """Raise `UserError` unless the folder has a causal model with complete weights."""
    if not (Path(model) / "config.json").is_file():
        raise UserError(
            f"{MODEL}={model} has no config.json. Give a folder in Hugging Face's format: a policy of the store, or "
            "a model of the hub after hf download NAME --local-dir FOLDER"
        )
    check_causal(load_config(model, MODEL, local_files_only=True), f"{MODEL}={model}")
    check_weights(Path(model), MODEL)


def check_same_tokenizer(renderer: Renderer, model: str) -> None:
    """Raise `UserError` if the folder's token ids or end tokens differ from the fine-tuned model's."""
    other = tokenizer_at(model, MODEL, local_files_only=True)
    if other.get_vocab() != renderer.tokenizer.get_vocab():
        raise UserError(
            f"{MODEL}={model}: its vocabulary differs from the fine-tuned model's, and training uses the sampled "
            "tokens. Give a model with the same tokenizer, or import its texts with generator=import."
        )
    try:
        ends = Renderer(other).end_ids
    except UserError as error:
        raise UserError(f"{MODEL}={model}: {error}") from error
    if ends != renderer.end_ids:
        raise UserError(
            f"{MODEL}={model}: its answers end with the tokens {sorted(ends)}, those of the fine-tuned model with "
            f"{sorted(renderer.end_ids)}. Give its tokenizer the fine-tuned model's chat template."
        )


def with_system_message(messages: Sequence[Message], system: str | None) -> list[Message]:
    """Return the dialogue with a system message, followed by the dialogue's own system message, if any."""
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
        raise UserError(f"{SYSTEM}: the row {example.id}: {error}. Set it to null, or use another template.") from error
    if rendered == renderer.prompt(example.prompt):
        raise UserError(f"{SYSTEM}: the chat template ignores system messages. Set it to null.")
