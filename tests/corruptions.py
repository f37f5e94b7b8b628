"""Damage a store in many ways, run the same job again, and compare: damage must never change a result silently.

    python tests/corruptions.py                     # 50 cases, about ten minutes
    python tests/corruptions.py --count 5 --seed 7  # other cases

Each case damages one random file in the store of a finished job, or of a job that was killed during sampling or
training. The job must then give the numbers of an undamaged run, or fail with one line that says what is wrong. The
script prints a line per case. It exits with 1 if a result differs, a traceback appears or a failed job prints no error.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from jobs import TINY, comparable_numbers, kill_when, read_result, run_train

JOB = (*TINY, "tracking=none")
KILLS = ("generate/*.partial/resume/**/*.parquet", "align/*.partial/resume/last.ckpt")
WITHOUT_RESULTS = ("runs", "locks", "trash")  # folders whose files do not affect a result


def flip(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes()) or bytearray(1)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def change_digit(file: Path, draw: random.Random) -> None:
    """Replace a digit by another digit, so that text files stay well-formed."""
    data = bytearray(file.read_bytes())
    digits = [index for index, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        index = draw.choice(digits)
        data[index] = 48 + (data[index] - 47) % 10
        file.write_bytes(data)
    else:
        flip(file, draw)


def cut(file: Path, draw: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(max(1, file.stat().st_size))])


def empty(file: Path, draw: random.Random) -> None:
    file.write_bytes(b"")


def delete(file: Path, draw: random.Random) -> None:
    file.unlink()


def swap(file: Path, draw: random.Random) -> None:
    """Replace the file by another file of its folder with the same suffix."""
    others = [other for other in file.parent.glob(f"*{file.suffix}") if other != file and other.is_file()]
    if others:
        shutil.copy(draw.choice(others), file)
    else:
        flip(file, draw)


def append(file: Path, draw: random.Random) -> None:
    with open(file, "ab") as stream:
        stream.write(draw.randbytes(7))


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, flip, change_digit, cut, empty, delete, swap, append]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job on a damaged store.

    Attributes:
        damage: kind of damage, and the damaged file.
        code: exit code.
        message: the line about the damage; "" if there is none.
        fault: what is wrong with the outcome; "" if nothing is.
    """

    damage: str
    code: int
    message: str
    fault: str


def run_damaged(source: Path, folder: Path, expected: list[object], draw: random.Random) -> Outcome:
    """Copy the store of `source` to `folder`, damage one of its files, and run the job there."""
    shutil.copytree(source / "store", folder / "store", symlinks=True)
    files = sorted(file for file in (folder / "store").rglob("*") if file.is_file())
    files = [file for file in files if file.relative_to(folder / "store").parts[0] not in WITHOUT_RESULTS]
    partial = [file for file in files if ".partial" in str(file)]
    file, damage = draw.choice(partial if partial and draw.random() < 0.8 else files), draw.choice(DAMAGES)
    damage(file, draw)
    ended = run_train(*JOB, cwd=folder)
    message = next((line for line in ended.stderr.splitlines() if "again" in line or line.startswith("error: ")), "")
    fault = "traceback" if "Traceback" in ended.stderr else ""
    if not ended.returncode and comparable_numbers(read_result(folder / "out")) != expected:
        fault = "different result"
    if ended.returncode and not message:
        fault = fault or "no error line"
    return Outcome(f"{damage.__name__} {file.relative_to(folder / 'store')}", ended.returncode, message, fault)


def stores(folder: Path) -> tuple[list[Path], list[object]]:
    """Return the folders of a finished job and of two killed jobs, and the numbers of the finished job."""
    (finished := folder / "finished").mkdir(parents=True)
    ended = run_train(*JOB, cwd=finished)
    assert ended.returncode == 0, ended.stderr
    folders = [finished]
    for number, pattern in enumerate(KILLS):
        killed = folder / f"killed{number}"
        if number:  # the second killed job continues the first
            shutil.copytree(folders[-1] / "store", killed / "store")
        else:
            killed.mkdir()
        kill_when(killed, JOB, pattern)
        folders.append(killed)
    return folders, comparable_numbers(read_result(finished / "out"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw, faults = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folders, expected = stores(Path(scratch))
        for number in range(args.count):
            folder = Path(scratch) / f"try{number}"
            outcome = run_damaged(folders[number % len(folders)], folder, expected, draw)
            faults += bool(outcome.fault)
            print(f"{outcome.fault or 'ok':<15} {outcome.damage}: {outcome.message or 'no message'}", flush=True)
            shutil.rmtree(folder)
    print(f"{args.count} cases, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
