"""python -m selfcontrast.store ls|show|diff|verify|prune   looks after a store."""

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
    """Runs one command. Returns the exit code: 1 where `verify` found damage. Raises `UserError`."""
    given = _parser().parse_args(arguments)
    if is_url(given.store):
        raise UserError(f"--store {given.store}: these commands work on a folder: give that of the working copies")
    with full.explained(Path(given.store)):
        catalog = Catalog.read(Path(given.store))
        code: int = given.command(catalog, given)
    return code


def ls(catalog: Catalog, given: argparse.Namespace) -> int:
    entries = [e for e in catalog.entries if not given.stage or e.stage in given.stage]
    if given.json:
        print(json.dumps([_facts(catalog, e) for e in entries], indent=1))
    else:
        print_entries(catalog, entries)
    return 0


def show(catalog: Catalog, given: argparse.Namespace) -> int:
    print_entry(catalog, catalog.find(given.key))
    return 0


def diff(catalog: Catalog, given: argparse.Namespace) -> int:
    print_differences(catalog, catalog.find(given.one), catalog.find(given.other))
    return 0


def verify_all(catalog: Catalog, given: argparse.Namespace) -> int:
    entries = [catalog.find(key) for key in given.keys] or catalog.published
    damaged = damaged_lines_in_all = 0
    for entry in entries:
        damage = verify(entry.folder)
        damaged += damage is not None
        print(f"{'damaged' if damage else 'intact':<8} {entry.name}{f': {damage}' if damage else ''}", flush=True)
    for file in [] if given.keys else sorted(catalog.root.glob(LEDGERS)):
        lines = damaged_lines(file)
        damaged_lines_in_all += lines
        if lines:
            name = file.relative_to(catalog.root)
            print(f"damaged  {name}: {lines} lines have changed since they were written; they are not used", flush=True)
    print(
        f"{len(entries) - damaged} intact, {damaged} damaged"
        + ("; they are computed again when wanted" * bool(damaged))
    )
    return 1 if damaged or damaged_lines_in_all else 0


def prune_some(catalog: Catalog, given: argparse.Namespace) -> int:
    keys = {catalog.find(key).key for key in given.keys}
    chosen = prune.choose(catalog, prune.Wish(given.stage, given.unused_for, keys, given.used))
    freed = 0
    for entry in chosen:
        line = f"{entry.name}, {entry.state}, {size(entry.bytes)}, last used {age(entry.used)} ago"
        if given.used and (who := users(catalog, entry)):
            line += f", by {who}"
        if not given.yes:
            print(f"would delete {line}")
        elif prune.delete(catalog.root, entry, given.used):
            print(f"deleted {line}", flush=True)
        else:
            print(f"spared {line}: taken into use just now")
            continue
        freed += entry.bytes
    if given.yes:
        prune.sweep(catalog.root)
    print(f"{size(freed)} freed" if given.yes else f"{size(freed)} in all; nothing is deleted without --yes")
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
        "apart": catalog.apart(entry),
        "settings": entry.manifest.get("settings"),
        "inputs": entry.inputs,
        "artifacts": [e.name for e in catalog.made_from(entry)],
        "runs": [str(run) for run in entry.runs],
        "owner": str(entry.owner) if entry.owner else None,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="selfcontrast store",
        description="Looks after a store of finished stages. A key may be cut short wherever one is asked for.",
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--store",
        metavar="FOLDER",
        default=os.environ.get("SELFCONTRAST_STORE", "store"),
        help="the store (default: $SELFCONTRAST_STORE, else ./store)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="ls|show|diff|verify|prune")

    one = commands.add_parser("ls", parents=[where], help="list artifacts: size, age, users, and what tells them apart")
    one.add_argument("--stage", action="append", metavar="STAGE", help="of this stage only; may be given repeatedly")
    one.add_argument("--json", action="store_true", help="as JSON, with whole keys and settings")
    one.set_defaults(command=ls)

    one = commands.add_parser("show", parents=[where], help="one artifact: manifest, lineage, users")
    one.add_argument("key", metavar="KEY")
    one.set_defaults(command=show)

    one = commands.add_parser("diff", parents=[where], help="how two artifacts differ: settings, inputs, code")
    one.add_argument("one", metavar="A")
    one.add_argument("other", metavar="B")
    one.set_defaults(command=diff)

    one = commands.add_parser(
        "verify", parents=[where], help="compare all checksums; exit code 1 where there is damage"
    )
    one.add_argument("keys", nargs="*", metavar="KEY", help="of these only (default: all)")
    one.set_defaults(command=verify_all)

    one = commands.add_parser(
        "prune",
        parents=[where],
        help="delete what nothing uses, and what killed processes left",
        description="Deletes artifacts that no run (whose output folder still exists) and no artifact that stays "
        "depends on, and the working folders of processes that ended before they were done, with all there is to "
        "resume. Says what it would delete; --yes does it. Never touches what a live process is computing.",
    )
    one.add_argument("keys", nargs="*", metavar="KEY", help="of these only (default: all)")
    one.add_argument("--stage", action="append", default=[], metavar="STAGE", help="of this stage only; repeatable")
    one.add_argument(
        "--unused-for",
        type=_duration,
        default=0,
        metavar="TIME",
        help="last asked for at least 30min, 12h, 30d, 8w ago",
    )
    one.add_argument("--used", action="store_true", help="even what runs and other artifacts depend on")
    one.add_argument("--yes", action="store_true", help="delete, instead of saying what would be deleted")
    one.set_defaults(command=prune_some)
    return parser


def _duration(text: str) -> float:
    if not (found := re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(UNITS)})", text)):
        raise argparse.ArgumentTypeError(f"{text!r}: a number and one of {', '.join(UNITS)}, such as 30d")
    return float(found[1]) * UNITS[found[2]]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
