"""Export a run: its negatives for other trainers, or its policy for the Hugging Face Hub.

python -m selfcontrast.export SOURCE --format trl|llamafactory|jsonl --output FILE
python -m selfcontrast.export RUN push_to_hub=OWNER/NAME license=ID --dry-run
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from selfcontrast.config import build
from selfcontrast.data.builtin import VERSION, Builtin
from selfcontrast.data.candidates import Negative, read_chosen, read_negatives
from selfcontrast.data.example import Example, Message, Source
from selfcontrast.data.jsonl import Jsonl
from selfcontrast.errors import UserError
from selfcontrast.filters.filter import FILE
from selfcontrast.results import RESULT, Result
from selfcontrast.store import MANIFEST

Row = dict[str, Any]

HELP = """\
formats of --format, one JSON object per line:
  trl           prompt, chosen, rejected as messages, one line per negative: TRL's DPOTrainer reads it
  llamafactory  conversations, chosen, rejected (ShareGPT, ranking), one line per negative; the entry for
                LLaMA-Factory's dataset_info.json is printed
  jsonl         id, prompt, target, negatives: one line per prompt and chosen response; generator=import reads it
Prompts longer than a trainer's maximal length are included: the trainer drops them.

the policy on the Hugging Face Hub, with a model card; nothing is uploaded without push_to_hub:
  push_to_hub=OWNER/NAME  the repository. The token comes from the environment: HF_TOKEN
  license=ID              such as apache-2.0; license=unknown writes "unknown" into the card.
                          Default: the license in the base model's own card
  private=true            whether a new repository is private: true | false
  update=false            true = add a commit to an existing repository
"""
PUBLISH_DEFAULTS = {"push_to_hub": "", "license": "", "private": "true", "update": "false"}


def trl(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """Yield TRL's conversational preference rows, one per negative."""
    for negative in negatives:
        yield {"prompt": example.prompt, "chosen": [_answer(chosen)], "rejected": [_answer(negative)]}


def llamafactory(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """Yield LLaMA-Factory's ShareGPT ranking rows. The column `system` holds the system message, or is empty."""
    names = {"user": "human", "assistant": "gpt"}
    system = "".join(m["content"] for m in example.prompt[:1] if m["role"] == "system")
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in example.prompt if m["role"] != "system"]
    for negative in negatives:
        better, worse = ({"from": "gpt", "value": answer} for answer in (chosen, negative))
        yield {"system": system, "conversations": turns, "chosen": better, "rejected": worse}


def plain(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """Yield one row with all these negatives, in the filter's order. Its target is the chosen response."""
    yield {"id": example.id, "prompt": example.prompt, "target": chosen, "negatives": list(negatives)}


FORMATS: dict[str, Callable[[Example, str, Sequence[str]], Iterator[Row]]] = {
    "trl": trl,
    "llamafactory": llamafactory,
    "jsonl": plain,
}


def export(source: Path, form: str, count: int | None, output: Path, data: str | None) -> int:
    """Write the first `count` negatives of every prompt (None: all) to `output`; return the number of rows.

    A prompt's chosen response is its target or a candidate. If both were chosen, each of them has rows.

    Args:
        source: folder of a finished run, or of a negatives artifact in the store.
        data: the file that the prompts came from; needed if it has moved or the source is an artifact.

    Raises:
        UserError: if the source holds no negatives, the data has changed, or a prompt has fewer than `count` negatives.
    """
    folder, examples = _read(source, data)
    ranked, chosen = read_negatives(folder / FILE), read_chosen(folder)
    fewest = min(map(len, ranked.values()))
    if count is not None and not 1 <= count <= fewest:
        raise UserError(f"--negatives {count} must be from 1 to {fewest}, the smallest number for a prompt.")
    rows = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.writing")
    with open(partial, "w", encoding="utf-8") as file:
        for example in examples:
            if example.id in ranked:
                answers = [example.target] if chosen is None else [positive.text for positive in chosen[example.id]]
                for answer in answers:
                    for row in FORMATS[form](example, answer.strip(), _texts(ranked[example.id], count)):
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        rows += 1
    os.replace(partial, output)
    return rows


def dataset_info(output: Path) -> Row:
    """Return the entry for LLaMA-Factory's dataset_info.json."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"}
    entry = {"file_name": output.name, "formatting": "sharegpt", "ranking": True, "columns": columns}
    return {output.name.partition(".")[0]: entry}


def _texts(ranked: Sequence[Negative], count: int | None) -> list[str]:
    return [negative.text.strip() for negative in ranked[:count]]  # stripped, as targets are


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _read(source: Path, data: str | None) -> tuple[Path, list[Example]]:
    """Return the folder with the negatives, and their training examples."""
    config: Mapping[str, Any] | None = None
    folder = source
    if (source / RESULT).is_file():
        result = Result.read(source)
        config = result.config["data"]
        folder = Path(next(stage["path"] for stage in result.stages if stage["name"] == "filter"))
    if not (folder / FILE).is_file() or not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no negatives. Give a finished run's folder, or STORE/filter/KEY.")
    fingerprint = _fingerprint(folder)
    if config is not None and data is None:
        dataset = build(OmegaConf.create(dict(config)), "data")
    else:
        dataset = _source(fingerprint, data)
    if dataset.fingerprint() != fingerprint:
        raise UserError(
            f"{source}: its data has changed, or its negatives are from other data. Give the right file by --data."
        )
    return folder, dataset.load()["train"]


def _fingerprint(artifact: Path) -> Any:
    """Return the fingerprint of the data that an artifact was made from, found in the manifests of its inputs."""
    try:
        manifest = json.loads((artifact / MANIFEST).read_text())
    except OSError:
        raise UserError(f"{artifact} is gone from the store, so its data is unknown. Run the job again.") from None
    if "data" in manifest["settings"]:
        return manifest["settings"]["data"]
    input_key = next(iter(manifest["inputs"].values()))
    root = artifact.parents[1]
    return _fingerprint(next(root.glob(f"*/{input_key}"), root / input_key))


def _source(fingerprint: Mapping[str, Any], data: str | None) -> Source:
    if fingerprint["source"] == "builtin":
        if fingerprint["version"] != VERSION:
            raise UserError("These negatives come from another version of the built-in data. Run the job again.")
        return Builtin(**{k: v for k, v in fingerprint.items() if k not in ("source", "version")})
    if fingerprint["source"] == "jsonl" and data:
        names = ("validation", "test", "limit", "answer_column")
        settings: dict[str, Any] = {name: fingerprint.get(name) for name in names}
        return Jsonl(path=data, targets=fingerprint.get("targets", "required"), **settings)
    raise UserError("The store does not record where the data is. Give --data FILE, or the run's folder.")


def publish(run: Path, settings: Mapping[str, str], folder: Path, dry_run: bool) -> None:
    """Write a run's policy and its model card to `folder`, and upload it unless `dry_run`.

    Args:
        settings: a value for each key of `PUBLISH_DEFAULTS`.

    Raises:
        UserError: for a wrong setting, if the license is neither known nor given, or if the Hub refuses the upload.
    """
    from selfcontrast.publish import Publication, license_known, prepare, push

    repository, license = settings["push_to_hub"], settings["license"]
    private, update = (_flag(name, settings[name]) for name in ("private", "update"))
    publication = Publication(repository, license or None, private, update)
    files = prepare(run, publication, folder)
    print(f"{folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB")
    ask = "The base model's license is unknown: give license=ID, or license=unknown to publish without one"
    if dry_run:
        print(f"would be uploaded to {repository} ({'private' if private else 'public'}, if new):")
        for file in files:
            print(f"  {file.relative_to(folder)}")
        if not license_known(folder):
            print(f"{ask}.")
    elif not license_known(folder):
        raise UserError(f"{ask}.")
    else:
        print(push(folder, publication))


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise UserError(f"{name}={value} must be true or false.")
    return value == "true"


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    """Return the settings of a publication: the defaults, replaced by those on the command line."""
    settings = dict(PUBLISH_DEFAULTS)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in settings or not equals:
            known = ", ".join(settings)
            raise UserError(f"{argument} is not a setting of export. Settings: {known}, each as KEY=VALUE.")
        settings[name] = value
    if arguments and not settings["push_to_hub"]:
        raise UserError(f"{arguments[0]} needs push_to_hub=OWNER/NAME.")
    return settings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="selfcontrast export",
        description="Write prompts, targets and negatives for other trainers; or publish a policy on the Hub.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a finished run's folder, or a negatives artifact: STORE/filter/KEY")
    parser.add_argument("settings", metavar="KEY=VALUE", nargs="*", help="push_to_hub, license, private, update")
    parser.add_argument("--format", choices=FORMATS, dest="form")
    parser.add_argument("--negatives", type=int, metavar="K", help="the first K negatives of each prompt; default: all")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="a .jsonl file; with push_to_hub a folder (default: SOURCE/hub)"
    )
    parser.add_argument("--data", metavar="FILE", help="your data file, if it has moved or SOURCE is an artifact")
    parser.add_argument("--dry-run", action="store_true", help="with push_to_hub: write the folder, upload nothing")
    args = parser.parse_args(arguments)
    settings = _settings(args.settings)
    if settings["push_to_hub"]:
        if args.form:
            raise UserError("--format writes negatives and push_to_hub publishes the policy. Export one at a time.")
        publish(args.source, settings, args.output or args.source / "hub", args.dry_run)
        return
    if args.dry_run:
        raise UserError("--dry-run needs push_to_hub=OWNER/NAME.")
    if args.form is None or args.output is None:
        raise UserError("Give --format and --output for negatives, or push_to_hub=OWNER/NAME for the policy.")
    rows = export(args.source, args.form, args.negatives, args.output, args.data)
    print(f"{rows} rows in {args.output}")
    if args.form == "llamafactory":
        print(f"for dataset_info.json: {json.dumps(dataset_info(args.output), indent=2)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
