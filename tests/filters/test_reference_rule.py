"""Compare what filter=least_similar keeps with a slow implementation of the reference code's rule.

Each pool has 32 responses, of which 32, 26 or 18 are distinct. Some pools have an empty response or a copy of the
target. The rule is that of THUDM/Self-Contrast: src/construct_synthetic_data.py ("lastdedup") and
src/compute_embeddings.py (the ranks).
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from sources import write_sources

from selfcontrast.errors import UserError
from selfcontrast.filters.filter import PROMPTS, SIMILARITIES, select_negatives
from selfcontrast.filters.select import Filter
from selfcontrast.filters.selectors import LeastSimilar
from tiny import example

POOLS, SAMPLES, FRACTION = 50, 32, 0.75
TARGET = "target"
COSINES = {TARGET: 1.0, **{f"w{i}": -0.95 + 0.05 * i for i in range(36)}}  # distinct cosines to the target
EMPTY = 0.32  # cosine of an empty response; no other text has it


def cosine(text: str) -> float:
    return COSINES.get(text.strip(), EMPTY)


def responses(distinct: int, seed: int) -> list[str]:
    """Return 32 responses with `distinct` texts. Half of the seeds add an empty one, half a copy of the target."""
    draw = random.Random(f"{distinct} {seed}")
    special = [*([""] if seed % 2 else []), *([TARGET] if seed % 4 > 1 else [])]
    texts = special + draw.sample([name for name in COSINES if name != TARGET], distinct - len(special))
    texts += draw.choices(texts, k=SAMPLES - len(texts))
    draw.shuffle(texts)
    return texts


def reference(texts: Sequence[str]) -> set[str]:
    """Return the texts that the reference implementation keeps."""
    rank = {
        text: sum(cosine(other) < cosine(text) for other in texts) for text in texts
    }  # a repeated text counts each time
    ranks = sorted(rank.values())
    threshold = ranks[min(int(FRACTION * len(texts)), len(ranks) - 1)]
    kept = {text for text in rank if rank[text] < threshold}
    return {text for text in kept if text.strip(" ")}


def kept(
    folder: Path, sampled: dict[str, Sequence[str]], fraction_of: str, max_negatives: int = 1
) -> dict[str, set[str]]:
    folder.mkdir(exist_ok=True)
    sources = write_sources(folder / "in", sampled, cosine)
    examples = {name: example(name, "?", TARGET) for name in sampled}
    settings = Filter(LeastSimilar(FRACTION, fraction_of), max_negatives, "drop_everywhere", 42, None)
    select_negatives(folder, settings, examples, *sources, None)
    similarities = pd.read_parquet(folder / SIMILARITIES)
    texts: dict[str, set[str]] = {name: set() for name in sampled}
    for row in similarities[similarities["kept"]].itertuples():
        texts[row.id].add(sampled[row.id][row.sample])
    return texts


@pytest.mark.parametrize("distinct", [32, 26, 18])
def test_least_similar_of_samples_keeps_the_reference_sets(distinct: int, tmp_path: Path) -> None:
    sampled: dict[str, Sequence[str]] = {f"p{i}": responses(distinct, i) for i in range(POOLS)}
    expected = {name: reference(texts) for name, texts in sampled.items()}
    assert all(len(set(texts)) == distinct and len(texts) == SAMPLES for texts in sampled.values())
    assert kept(tmp_path, sampled, "samples") == expected
    sizes = {len(texts) for texts in expected.values()}
    assert sizes == {min(24, distinct - 1), min(24, distinct - 1) - 1}  # one fewer if one of them is empty
    assert not any(TARGET in texts for texts in expected.values())


def test_least_similar_of_distinct_keeps_fewer_if_responses_repeat(tmp_path: Path) -> None:
    """The numbers are those of docs/filter.md: 24, 19 and 13. The reference keeps 24, 24 and 17."""
    sampled: dict[str, Sequence[str]] = {f"p{n}": responses(n, 0) for n in (32, 26, 18)}
    sizes = {name: len(texts) for name, texts in kept(tmp_path / "d", sampled, "distinct").items()}
    assert sizes == {"p32": 24, "p26": 19, "p18": 13}
    sizes = {name: len(texts) for name, texts in kept(tmp_path / "s", sampled, "samples").items()}
    assert sizes == {"p32": 24, "p26": 24, "p18": 17}


@pytest.mark.parametrize(("fraction_of", "needed"), [("samples", 17), ("distinct", 22)])
def test_distinct_responses_needed_for_16_negatives(fraction_of: str, needed: int, tmp_path: Path) -> None:
    """The filter draws 16 negatives for every K. The reference needs K + 1 distinct responses, so 17 for K = 16."""
    sampled: dict[str, Sequence[str]] = {f"p{n}": responses(n, 0) for n in range(1, SAMPLES + 1)}
    kept(tmp_path, sampled, fraction_of, max_negatives=16)
    prompts = pd.read_parquet(tmp_path / PROMPTS).set_index("id")
    used = [name for name in sampled if prompts.loc[name, "drawn"] == 16]
    assert used == [f"p{n}" for n in range(needed, SAMPLES + 1)]


def test_one_negative_needs_two_distinct_responses(tmp_path: Path) -> None:
    sampled: dict[str, Sequence[str]] = {"one": ["w1"] * 32, "two": ["w1", "w2"] * 16}
    assert kept(tmp_path / "both", sampled, "samples") == {"one": set(), "two": {"w1"}}
    with pytest.raises(UserError, match=r"no prompt .*max_negatives=1"):
        kept(tmp_path / "one", {"one": ["w1"] * 32}, "samples")
