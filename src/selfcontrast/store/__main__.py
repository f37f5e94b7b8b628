"""List, show, compare, verify and prune artifacts: `selfcontrast store ls|show|diff|verify|prune`."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from selfcontrast.errors import UserError
from selfcontrast.store import full, prune
from selfcontrast.store.artifact import verify
from selfcontrast.store.catalog import Catalog, Entry
from selfcontrast.store.remote import is_url
from selfcontrast.store.sealed import damaged_lines
from selfcontrast.store.terminal import age, print_differences, print_entries, print_entry, size, users

LEDGERS = "judgments/*.jsonl"
UNITS = {"min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 1 if `verify` found damage. Raises `UserError`."""
    args = _parser().parse_args(arguments)
    if is_url(args.store):
        raise UserError(f"--store {args.store} is a URL. Give the folder of its working copies (store_cache).")
    with full.explain_disk_errors(Path(args.store)):
        catalog = Catalog.read(Path(args.store))
        code: int = args.command(catalog, args)
    return code


def ls(catalog: Catalog, args: argparse.Namespace) -> int:
    entries = [e for e in catalog.entries if not args.stage or e.stage in args.stage]
    if args.json:
        print(json.dumps([_facts(catalog, e) for e in entries], indent=1))
    else:
        print_entries(catalog, entries)
    return 0


def show(catalog: Catalog, args: argparse.Namespace) -> int:
    print_entry(catalog, catalog.find(args.key))
    return 0


def diff(catalog: Catalog, args: argparse.Namespace) -> int:
    print_differences(catalog, catalog.find(args.first), catalog.find(args.second))
    return 0


def verify_all(catalog: Catalog, args: argparse.Namespace) -> int:
    entries = [catalog.find(key) for key in args.keys] or catalog.published
    damaged = damaged_lines_in_all = 0
    for entry in entries:
        damage = verify(entry.folder)
        damaged += damage is not None
        print(f"{'damaged' if damage else 'intact':<8} {entry.name}{f': {damage}' if damage else ''}", flush=True)
    for file in [] if args.keys else sorted(catalog.root.glob(LEDGERS)):
        lines = damaged_lines(file)
        damaged_lines_in_all += lines
        if lines:
            name = file.relative_to(catalog.root)
            print(f"damaged  {name}: {lines} lines have changed since they were written and are ignored", flush=True)
    print(
        f"{len(entries) - damaged} intact, {damaged} damaged"
        + ("; damaged ones are recomputed when a job needs them" * bool(damaged))
    )
    return 1 if damaged or damaged_lines_in_all else 0


def prune_chosen(catalog: Catalog, args: argparse.Namespace) -> int:
    keys = {catalog.find(key).key for key in args.keys}
    chosen = prune.choose(catalog, prune.PruneQuery(args.stage, args.unused_for, keys, args.used))
    freed = 0
    for entry in chosen:
        line = f"{entry.name}, {entry.state}, {size(entry.bytes)}, last used {age(entry.used)} ago"
        if args.used and (counts := users(catalog, entry)):
            line += f", by {counts}"
        if not args.yes:
            print(f"would delete {line}")
        elif prune.delete(catalog.root, entry, args.used):
            print(f"deleted {line}", flush=True)
        else:
            print(f"kept {line}: a run has just started to use it")
            continue
        freed += entry.bytes
    if args.yes:
        prune.sweep(catalog.root)
    print(f"{size(freed)} freed" if args.yes else f"{size(freed)} in total. Nothing was deleted; add --yes to delete.")
    return 0


def _facts(catalog: Catalog, entry: Entry) -> dict[str, Any]:
    return {
        "stage": entry.stage,
        "key": entry.key,
        "folder": str(entry.folder),
        "state": entry.state,
        "bytes": entry.bytes,
        "created": datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"),
        "used": datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds"),
        "apart": catalog.differing_settings(entry),
        "settings": entry.manifest.get("settings"),
        "inputs": entry.inputs,
        "artifacts": [e.name for e in catalog.made_from(entry)],
        "runs": [str(run) for run in entry.runs],
        "owner": str(entry.owner) if entry.owner else None,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selfcontrast store",
        description="Manage a store of finished stages. Keys may be abbreviated to their first digits.",
    )
    store_option = argparse.ArgumentParser(add_help=False)
    store_option.add_argument(
        "--store",
        metavar="FOLDER",
        default=os.environ.get("SELFCONTRAST_STORE", "store"),
        help="the store (default: $SELFCONTRAST_STORE, else ./store)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="ls|show|diff|verify|prune")

    command = commands.add_parser(
        "ls", parents=[store_option], help="list artifacts: size, age, users, and the settings that differ"
    )
    command.add_argument("--stage", action="append", metavar="STAGE", help="only this stage (repeatable)")
    command.add_argument("--json", action="store_true", help="print JSON with full keys and settings")
    command.set_defaults(command=ls)

    command = commands.add_parser("show", parents=[store_option], help="show one artifact: manifest, lineage, users")
    command.add_argument("key", metavar="KEY")
    command.set_defaults(command=show)

    command = commands.add_parser(
        "diff", parents=[store_option], help="show how two artifacts differ: settings, inputs, code"
    )
    command.add_argument("first", metavar="A")
    command.add_argument("second", metavar="B")
    command.set_defaults(command=diff)

    command = commands.add_parser(
        "verify", parents=[store_option], help="verify all checksums; exit code 1 if any artifact is damaged"
    )
    command.add_argument("keys", nargs="*", metavar="KEY", help="only artifacts with these keys (default: all)")
    command.set_defaults(command=verify_all)

    command = commands.add_parser(
        "prune",
        parents=[store_option],
        help="delete artifacts that nothing uses, and leftovers of killed processes",
        description="Delete artifacts that no existing run and no kept artifact depends on, and the working folders of "
        "processes that ended early, with their resume state. Without --yes, only list them. Artifacts that a live "
        "process is computing are never touched.",
    )
    command.add_argument("keys", nargs="*", metavar="KEY", help="only artifacts with these keys (default: all)")
    command.add_argument("--stage", action="append", default=[], metavar="STAGE", help="only this stage (repeatable)")
    command.add_argument(
        "--unused-for",
        type=_duration,
        default=0,
        metavar="TIME",
        help="only artifacts last used at least this long ago: 30min, 12h, 30d, 8w",
    )
    command.add_argument("--used", action="store_true", help="also artifacts that runs and other artifacts depend on")
    command.add_argument("--yes", action="store_true", help="delete; without it, only list")
    command.set_defaults(command=prune_chosen)
    return parser


def _duration(text: str) -> float:
    if not (match := re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration. Give a number and one of {', '.join(UNITS)}: 30d."
        )
    return float(match[1]) * UNITS[match[2]]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
