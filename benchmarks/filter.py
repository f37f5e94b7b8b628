"""Measure time and memory of the filter stage on synthetic candidates and embeddings, one process per selector.

    python benchmarks/filter.py --prompts 100000 --samples 32 --dimensions 384

The script writes the output of the generate and embed stages to a temporary folder (3.3 GiB with these arguments), then
selects. Peak memory is that of the selecting process, including its training examples.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfcontrast.data.candidates import SCHEMA
from selfcontrast.data.example import Example
from selfcontrast.filters.diverse import Clusters, LogDeterminant, MaximalMarginalRelevance
from selfcontrast.filters.embed import CANDIDATES, ROWS, TARGETS, hashes_of
from selfcontrast.filters.filter import select_negatives
from selfcontrast.filters.pool import Selector
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import (
    Everything,
    LeastConsistent,
    LeastSimilar,
    LowestRanked,
    MostSimilarBelow,
    Random,
    RankWindow,
)

SELECTORS: dict[str, Selector] = {
    "least_similar": LeastSimilar(0.75, "distinct"),
    "none": Everything(),
    "most_similar_below": MostSimilarBelow(0.8),
    "rank_window": RankWindow(0.25, 0.75),
    "random": Random(0.75, "distinct"),
    "mmr": MaximalMarginalRelevance(0.75, 0.5),
    "clusters": Clusters(0.75, 8, 20),
    "log_det": LogDeterminant(0.75, 0.1),
    "least_consistent": LeastConsistent(0.75, "distinct"),
    "rank_sum": LowestRanked(0.75, "distinct", ["similarity", "consensus", "log_prob"]),
}
TARGET = "the target of this prompt, about as long as they are. " * 4
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz    "))
CHUNK = 500  # prompts written at a time


def write_candidates(file: Path, prompts: int, samples: int, characters: int) -> None:
    """Write random texts of about `characters` characters; one text in twenty repeats the text before it."""
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for first in range(0, prompts, CHUNK):
            names = [f"p{i}" for i in range(first, min(prompts, first + CHUNK)) for _ in range(samples)]
            lengths = rng.integers(characters // 2, characters * 3 // 2, len(names))
            letters = "".join(LETTERS[rng.integers(0, len(LETTERS), int(lengths.sum()))])
            ends = np.cumsum(lengths)
            texts = [letters[end - length : end] for end, length in zip(ends, lengths, strict=True)]
            for i in np.flatnonzero(rng.random(len(texts)) < 0.05):
                texts[i] = texts[i - 1]
            tokens = np.maximum(1, lengths // 4)
            ids = pa.array(rng.integers(0, 32000, int(tokens.sum()), dtype=np.int32))
            starts = pa.array(np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32))
            columns = {
                "id": names,
                "sample": np.tile(np.arange(samples, dtype=np.int32), len(names) // samples),
                "text": texts,
                "token_ids": pa.ListArray.from_arrays(starts, ids),
                "finish_reason": ["stop"] * len(names),
                "log_prob": np.full(len(names), -1.0),
            }
            writer.write_table(pa.table(columns, schema=SCHEMA))


def write_vectors(folder: Path, prompts: int, dimensions: int) -> None:
    """Write random vectors of the stored candidates and of every prompt's target."""
    rng = np.random.default_rng(1)
    schema = pa.schema({"embedding": pa.list_(pa.float16(), dimensions), "text": pa.uint64()})
    with pq.ParquetFile(folder / "candidates.parquet") as candidates:
        batches = (batch["text"].to_pylist() for batch in candidates.iter_batches(ROWS, columns=["text"]))
        targets = ([TARGET] * min(ROWS, prompts - begin) for begin in range(0, prompts, ROWS))
        for file, blocks in ((TARGETS, targets), (CANDIDATES, whole_blocks(batches))):
            with pa.ipc.new_file(str(folder / file), schema) as writer:
                for texts in blocks:
                    vectors = rng.standard_normal((len(texts), dimensions), dtype=np.float32) + 1.0
                    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                    flat = pa.array(vectors.astype(np.float16).ravel())
                    column = pa.FixedSizeListArray.from_arrays(flat, dimensions)
                    writer.write_batch(pa.record_batch([column, pa.array(hashes_of(texts))], schema=schema))


def whole_blocks(batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """Regroup texts into blocks of `ROWS`, since batches end at row groups. The last block may be shorter."""
    buffer: list[str] = []
    for batch in batches:
        buffer += batch
        while len(buffer) >= ROWS:
            yield buffer[:ROWS]
            buffer = buffer[ROWS:]
    if buffer:
        yield buffer


def measure(name: str, prompts: int, source: Path, pipe: Any) -> None:
    """Select in this process; send (wall-clock, CPU) seconds, peak memory in GiB and the summary."""
    examples = {f"p{i}": Example(f"p{i}", [{"role": "user", "content": "?" * 200}], TARGET) for i in range(prompts)}
    settings = Filter(SELECTORS[name], 16, "drop_everywhere", 42, None)
    with tempfile.TemporaryDirectory(dir=source) as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        summary = select_negatives(Path(folder), settings, examples, source / "candidates.parquet", source, None)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, summary))


def measure_all(
    names: list[str], prompts: int, source: Path
) -> Iterator[tuple[str, tuple[float, float], float, dict[str, Any]]]:
    context = multiprocessing.get_context("spawn")  # a forked process would count the memory of this process
    for name in names:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(name, prompts, source, sender))
        process.start()
        sender.close()
        yield (name, *receiver.recv())
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--characters", type=int, default=200, help="mean number of characters in a text")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--selectors", nargs="+", choices=SELECTORS, default=list(SELECTORS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as source:
        write_candidates(Path(source) / "candidates.parquet", args.prompts, args.samples, args.characters)
        write_vectors(Path(source), args.prompts, args.dimensions)
        size = sum(file.stat().st_size for file in Path(source).iterdir()) / 2**30
        print(f"{args.prompts:,} prompts × {args.samples} candidates, {args.dimensions} dimensions, {size:.2f} GiB")
        print(f"{'selector':20} {'seconds':>8} {'CPU s':>8} {'peak GiB':>9} {'prompts used':>13}")
        for name, (wall, cpu), memory, summary in measure_all(args.selectors, args.prompts, Path(source)):
            print(f"{name:20} {wall:8.1f} {cpu:8.1f} {memory:9.2f} {summary['prompts_used']:13,}", flush=True)


if __name__ == "__main__":
    main()
