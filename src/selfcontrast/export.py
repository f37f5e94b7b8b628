"""Negatives for other trainers: python -m selfcontrast.export SOURCE --format trl|llamafactory|jsonl --output FILE"""

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

FORMATS_HELP = """\
formats, each with one JSON object a line:
  trl           prompt, chosen, rejected as messages, one line per negative: what TRL's DPOTrainer reads
  llamafactory  conversations, chosen, rejected (ShareGPT, ranking), one line per negative; the entry for
                LLaMA-Factory's dataset_info.json is printed
  jsonl         id, prompt, target, negatives: one line per prompt and chosen response; generator=import reads it

Prompts that a trainer's cutoff would leave out are in the file: the cutoff is the trainer's.
"""


def trl(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """TRL's conversational preference rows, a prompt's together."""
    for negative in negatives:
        yield {"prompt": example.prompt, "chosen": [_answer(chosen)], "rejected": [_answer(negative)]}


def llamafactory(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """LLaMA-Factory's ShareGPT ranking rows. A system message goes into a column of its own, empty without one."""
    names = {"user": "human", "assistant": "gpt"}
    system = "".join(m["content"] for m in example.prompt[:1] if m["role"] == "system")
    talk = [{"from": names[m["role"]], "value": m["content"]} for m in example.prompt if m["role"] != "system"]
    for negative in negatives:
        better, worse = ({"from": "gpt", "value": answer} for answer in (chosen, negative))
        yield {"system": system, "conversations": talk, "chosen": better, "rejected": worse}


def plain(example: Example, chosen: str, negatives: Sequence[str]) -> Iterator[Row]:
    """One row with all negatives, in the order of their draw. Its target is the chosen response."""
    yield {"id": example.id, "prompt": example.prompt, "target": chosen, "negatives": list(negatives)}


FORMATS: dict[str, Callable[[Example, str, Sequence[str]], Iterator[Row]]] = {
    "trl": trl,
    "llamafactory": llamafactory,
    "jsonl": plain,
}


def export(source: Path, form: str, count: int | None, output: Path, data: str | None) -> int:
    """Writes the first `count` negatives of every prompt (None: all) to `output`; returns the number of rows.

    A prompt's chosen response is its target, or the candidate that was chosen; where both were, each has rows.

    Args:
        source: a finished run's folder, or that of a negatives artifact in the store.
        data: the file that the prompts came from, where it is needed or has moved.

    Raises:
        UserError: when there is no such thing, the data is not the one, or there are fewer negatives.
    """
    folder, examples = _read(source, data)
    ranked, chosen = read_negatives(folder / FILE), read_chosen(folder)
    fewest = min(map(len, ranked.values()))
    if count is not None and not 1 <= count <= fewest:
        raise UserError(f"--negatives {count}: at least 1, and at most {fewest}, which every prompt has")
    rows = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.writing")
    with open(partial, "w", encoding="utf-8") as file:
        for example in examples:
            if example.id in ranked:
                answers = [example.target] if chosen is None else [one.text for one in chosen[example.id]]
                for answer in answers:
                    for row in FORMATS[form](example, answer.strip(), _texts(ranked[example.id], count)):
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        rows += 1
    os.replace(partial, output)
    return rows


def dataset_info(output: Path) -> Row:
    """The entry that LLaMA-Factory's dataset_info.json needs."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "system": "system"}
    entry = {"file_name": output.name, "formatting": "sharegpt", "ranking": True, "columns": columns}
    return {output.name.partition(".")[0]: entry}


def _texts(ranked: Sequence[Negative], count: int | None) -> list[str]:
    return [negative.text.strip() for negative in ranked[:count]]  # as the target: neither keeps its white space


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _read(source: Path, data: str | None) -> tuple[Path, list[Example]]:
    """The folder with the negatives, and the training examples that they are of."""
    config: Mapping[str, Any] | None = None
    folder = source
    if (source / RESULT).is_file():
        result = Result.read(source)
        config = result.config["data"]
        folder = Path(next(stage["path"] for stage in result.stages if stage["name"] == "filter"))
    if not (folder / FILE).is_file() or not (folder / MANIFEST).is_file():
        raise UserError(f"{source}: give a finished run's folder, or a negatives artifact (STORE/filter/KEY): {folder}")
    fingerprint = _fingerprint(folder)
    if config is not None and data is None:
        found = build(OmegaConf.create(dict(config)), "data")
    else:
        found = _source(fingerprint, data)
    if found.fingerprint() != fingerprint:
        raise UserError(f"{source}: its data has changed since, or is another; name the right file with --data FILE")
    return folder, found.load()["train"]


def _fingerprint(artifact: Path) -> Any:
    """What the store says of the data that an artifact was made from: the artifacts before it are asked in turn."""
    try:
        manifest = json.loads((artifact / MANIFEST).read_text())
    except OSError:
        raise UserError(f"{artifact} is gone from the store, and with it the name of the data") from None
    if "data" in manifest["settings"]:
        return manifest["settings"]["data"]
    before = next(iter(manifest["inputs"].values()))
    root = artifact.parents[1]
    return _fingerprint(next(root.glob(f"*/{before}"), root / before))


def _source(fingerprint: Mapping[str, Any], data: str | None) -> Source:
    if fingerprint["source"] == "builtin":
        if fingerprint["version"] != VERSION:
            raise UserError("these negatives were made from an earlier version of the built-in data: run the job again")
        return Builtin(**{k: v for k, v in fingerprint.items() if k not in ("source", "version")})
    if fingerprint["source"] == "jsonl" and data:
        own: dict[str, Any] = {name: fingerprint.get(name) for name in ("validation", "test", "limit", "answer_column")}
        return Jsonl(path=data, targets=fingerprint.get("targets", "required"), **own)
    raise UserError("the store does not know where the data lies: name it with --data FILE, or give the run's folder")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="selfcontrast export",
        description="Writes prompts, targets and negatives for other trainers.",
        epilog=FORMATS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a finished run's folder, or a negatives artifact: STORE/filter/KEY")
    parser.add_argument("--format", choices=FORMATS, required=True, dest="form")
    parser.add_argument("--negatives", type=int, metavar="K", help="the first K of each prompt; default: all")
    parser.add_argument("--output", type=Path, metavar="FILE", required=True, help="a .jsonl file")
    parser.add_argument("--data", metavar="FILE", help="your data file, for an artifact, or where it has moved")
    args = parser.parse_args(arguments)
    rows = export(args.source, args.form, args.negatives, args.output, args.data)
    print(f"{rows} rows in {args.output}")
    if args.form == "llamafactory":
        print(f"for dataset_info.json: {json.dumps(dataset_info(args.output), indent=2)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
