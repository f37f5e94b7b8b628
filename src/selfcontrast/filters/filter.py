"""The filter stage: select negatives from embedded candidates and record diagnostics of the selection.

Prompts are streamed: a few thousand candidates and vectors are read at a time, and only a few numbers per distinct
candidate are kept for the diagnostics.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfcontrast.data.candidates import CHOSEN, CUT, POSITIVES, TARGET, spans, whole_prompts
from selfcontrast.data.example import Example
from selfcontrast.errors import UserError
from selfcontrast.filters.contenders import Chosen
from selfcontrast.filters.diagnostics import describe, diversity, figure_data
from selfcontrast.filters.draw import Selection, choose
from selfcontrast.filters.embed import CANDIDATES, TARGETS, Vectors
from selfcontrast.filters.pool import Floats, Indices, SampledPrompt
from selfcontrast.filters.score import CandidateScorer
from selfcontrast.filters.select import Filter
from selfcontrast.filters.signals import signal_table

VERSION = 4
FILE, SIMILARITIES = "negatives.parquet", "similarities.parquet"
PROMPTS, DIAGNOSTICS = "prompts.parquet", "diagnostics.json"
COLUMNS = ["id", "sample", "text", "token_ids", "log_prob", "finish_reason"]  # read from the candidates' file
COMPARED = 32  # text diversity is measured on this many evenly spaced prompts (up to 63, because of rounding)

NEGATIVES = pa.schema(
    [
        ("id", pa.string()),
        ("rank", pa.int32()),
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("similarity", pa.float32()),
        ("log_prob", pa.float64()),
        ("score", pa.float32()),
    ]
)


def select_negatives(
    folder: Path,
    settings: Filter,
    examples: Mapping[str, Example],
    candidates: Path,
    embeddings: Path,
    scorer: CandidateScorer | None,
    chosen: Chosen | None = None,
) -> dict[str, Any]:
    """Write the negatives of every prompt that gives `max_negatives`, and the diagnostics; return the summary.

    If a candidate is chosen, the chosen responses are written too (`data.candidates.read_chosen`).

    Args:
        candidates: file of the generate stage.
        embeddings: folder of the embed stage.
        scorer: scores candidates by a verifier or reward model, if there is one.
        chosen: selects y+; None for the target.

    Raises:
        UserError: if no prompt gives enough negatives; with on_shortage="error", if any prompt gives too few.
    """
    prompts: list[dict[str, Any]] = []
    frames: list[pd.DataFrame] = []
    compared: list[tuple[list[list[int]], list[list[int]]]] = []
    every = max(1, len(Vectors(embeddings / TARGETS)) // COMPARED)
    with ExitStack() as files:
        negatives = files.enter_context(pq.ParquetWriter(folder / FILE, NEGATIVES))
        positives = None
        if chosen is not None and chosen.candidate:
            positives = files.enter_context(pq.ParquetWriter(folder / CHOSEN, POSITIVES))
        for table, block in blocks(candidates, embeddings, examples):
            choices = []
            for first, sampled in block:
                score = partial(scorer, examples[sampled.id], sampled.texts) if scorer else None
                choice = _in_table(first, choose(settings, sampled, score, chosen))
                if len(prompts) % every == 0:
                    compared.append(_token_ids(table, choice))
                example = examples[sampled.id]
                target_score = scorer.target(example) if scorer and example.has_target else nan
                prompts.append(
                    {**_prompt_row(settings, sampled, choice, positives is not None), "target_score": target_score}
                )
                choices.append(choice)
            frames.append(_distinct_rows(table, choices, len(prompts) - len(choices)))
            negatives.write_table(_negatives(table, choices))
            if positives is not None and chosen is not None:
                pairs = [(sampled, choice) for (_, sampled), choice in zip(block, choices, strict=True)]
                positives.write_table(_positives(table, pairs, chosen.target))
    return _write_diagnostics(folder, settings, pd.DataFrame(prompts), pd.concat(frames, ignore_index=True), compared)


def blocks(
    candidates: Path, embeddings: Path, examples: Mapping[str, Example]
) -> Iterator[tuple[pa.Table, list[tuple[int, SampledPrompt]]]]:
    """Yield tables that hold all candidates of some prompts, each with the prompts and the row where each begins."""
    candidate_file, target_file = Vectors(embeddings / CANDIDATES), Vectors(embeddings / TARGETS)
    row = prompt = 0
    for table in whole_prompts(candidates, COLUMNS):
        texts, prompt_spans = table["text"].to_pylist(), list(spans(table))
        targets = [examples[name].target for name, _ in prompt_spans]
        vectors, target_vectors = candidate_file.of(row, texts), list[Floats | None](target_file.of(prompt, targets))
        for i, (name, _) in enumerate(prompt_spans):
            if not examples[name].has_target:
                target_vectors[i] = None
        log_probs, tokens = table["log_prob"].to_numpy(), _lengths(table)
        ended = pc.not_equal(table["finish_reason"], CUT).to_pylist()
        columns: tuple[Any, ...] = (texts, vectors, log_probs, tokens, ended)
        row, prompt = row + table.num_rows, prompt + len(prompt_spans)
        yield (
            table,
            [
                (rows.start, SampledPrompt(name, target, vector, *(column[rows] for column in columns)))
                for (name, rows), target, vector in zip(prompt_spans, targets, target_vectors, strict=True)
            ],
        )


def _lengths(table: pa.Table) -> Indices:
    """Return the number of tokens of each candidate [n]."""
    lengths: Indices = pc.list_value_length(table["token_ids"]).to_numpy().astype(np.intp)
    return lengths


def _in_table(first: int, choice: Selection) -> Selection:
    """Shift a selection to rows of the table, in which the prompt's candidates begin at `first`."""
    best = choice.chosen and replace(choice.chosen, row=first + choice.chosen.row)
    return replace(choice, rows=first + choice.rows, chosen=best)


def _positives(table: pa.Table, prompts: Sequence[tuple[SampledPrompt, Selection]], with_target: bool) -> pa.Table:
    """Return the chosen responses of the prompts that have negatives; the target first if it is one of them."""
    rows: list[dict[str, Any]] = []
    for sampled, choice in prompts:
        best = choice.chosen
        if best is None or not len(choice.drawn.ranks):
            continue
        if with_target:
            rows.append({"id": sampled.id, "sample": TARGET, "text": sampled.target, "token_ids": []})
        if not (with_target and best.is_target):
            rows.append({**table.slice(best.row, 1).to_pylist()[0], "score": best.score})
    return pa.Table.from_pylist(rows, schema=POSITIVES)


def _negatives(table: pa.Table, choices: Sequence[Selection]) -> pa.Table:
    """Return the drawn candidates, grouped by prompt in rank order."""
    drawn = [(c, c.drawn.ranks) for c in choices]
    drawn_rows = table.take(pa.array(np.concatenate([c.rows[ranks] for c, ranks in drawn])))
    scores = [np.full(len(r), np.nan) if c.pool.scores is None else c.pool.scores[r] for c, r in drawn]
    columns = {
        "rank": np.concatenate([np.arange(len(ranks)) for _, ranks in drawn]),
        "similarity": np.concatenate([c.pool.similarity[ranks] for c, ranks in drawn]),
        "score": np.concatenate(scores),
        **{name: drawn_rows[name] for name in COLUMNS},
    }
    return pa.table([columns[name] for name in NEGATIVES.names], names=NEGATIVES.names).cast(NEGATIVES)


def target_scores(folder: Path) -> dict[str, float]:
    """Return the score of each example's target, by id, from the candidates' scorer; NaN without scorer or target."""
    table = pq.read_table(folder / PROMPTS, columns=["id", "target_score"])
    scores = table["target_score"].to_numpy()  # NaN for the nulls that pandas wrote
    return dict(zip(table["id"].to_pylist(), map(float, scores), strict=True))


def _token_ids(table: pa.Table, choice: Selection) -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of a prompt's distinct candidates, and of its negatives."""
    tokens = table["token_ids"].take(pa.array(choice.rows)).to_pylist()
    return tokens, [tokens[i] for i in choice.drawn.ranks]


def _distinct_rows(table: pa.Table, choices: Sequence[Selection], first: int) -> pd.DataFrame:
    """Return one row per distinct candidate; prompts are numbered from `first`."""
    sizes = [len(choice.rows) for choice in choices]
    rows = np.concatenate([choice.rows for choice in choices])
    starts = np.cumsum([0, *sizes[:-1]])
    kept, drawn, taken = (np.zeros(len(rows), dtype=bool) for _ in range(3))
    for start, choice in zip(starts, choices, strict=True):
        kept[start + choice.drawn.kept] = True
        drawn[start + choice.drawn.ranks] = True
        taken[start + choice.drawn.taken] = True
    scored = choices[0].pool.scores is not None
    return pd.DataFrame(
        {
            "prompt": np.repeat(np.arange(first, first + len(choices), dtype=np.int32), sizes),
            "sample": table["sample"].to_numpy()[rows],
            "similarity": np.concatenate([c.pool.similarity for c in choices]).astype(np.float32),
            "consensus": np.concatenate([c.pool.consensus for c in choices]),
            "log_prob": np.concatenate([c.pool.log_probs for c in choices]),
            "kept": kept,
            "drawn": drawn,
            "taken": taken,
            "tokens": _lengths(table)[rows],
            "characters": pc.utf8_length(table["text"]).to_numpy()[rows],
            "score": np.concatenate([c.pool.scores for c in choices]) if scored else np.float32("nan"),
            "good": np.concatenate([np.full(len(c.rows), nan) if c.good is None else c.good for c in choices]),
        }
    )


def _prompt_row(settings: Filter, sampled: SampledPrompt, choice: Selection, choosing: bool) -> dict[str, Any]:
    """Return a prompt's row of the prompts file. If `choosing`, add the columns of the chosen candidate."""
    distinct, kept, drawn = len(choice.rows), len(choice.drawn.kept), len(choice.drawn.ranks)
    texts, target = [text.strip() for text in sampled.texts], sampled.target
    reason = "distinct" if distinct < settings.max_negatives else "kept" if kept < settings.max_negatives else ""
    best = choice.chosen
    if choosing and best is None:
        reason = "chosen"
    chosen = {
        "chosen_is_target": best is not None and best.is_target,
        "chosen_score": np.nan if best is None or best.score is None else best.score,
    }
    return {
        "id": sampled.id,
        "sampled": len(texts),
        "empty": texts.count(""),
        "copies": texts.count(target.strip()) if target.strip() else 0,
        "distinct": distinct,
        "kept": kept,
        "drawn": drawn,
        "refilled": choice.drawn.refilled,
        "too_few": reason,
        "target_characters": len(target) if sampled.target_vector is not None else nan,
        **(chosen if choosing else {}),
    }


def _write_diagnostics(
    folder: Path,
    settings: Filter,
    prompts: pd.DataFrame,
    candidates: pd.DataFrame,
    compared: Sequence[tuple[list[list[int]], list[list[int]]]],
) -> dict[str, Any]:
    """Write prompts, similarities and diagnostics; return the summary. Raise `UserError` if no prompt is left."""
    if not prompts["drawn"].any():
        counts = Counter(zip(prompts["distinct"], prompts["kept"], strict=True)).most_common(3)
        reasons = ", ".join(f"{n} with {distinct} distinct, {kept} kept" for (distinct, kept), n in counts)
        scored = "chosen_score" in prompts and bool(prompts["chosen_score"].notna().any())
        note = " Candidates that score as high as the chosen one cannot be negatives." if scored else ""
        raise UserError(
            f"no prompt gives filter.max_negatives={settings.max_negatives} negatives ({reasons}). "
            f"Lower it, sample more (generator.samples), or use filter.on_shortage=refill.{note}"
        )
    prompts.to_parquet(folder / PROMPTS, index=False)
    ids = pa.DictionaryArray.from_arrays(pa.array(candidates["prompt"]), pa.array(prompts["id"]))
    internal = ["prompt", "good", *([] if "chosen_score" in prompts else ["taken"])]
    columns = pa.Table.from_pandas(candidates.drop(columns=internal), preserve_index=False)
    pq.write_table(columns.add_column(0, "id", ids.cast(pa.string())), folder / SIMILARITIES)
    table = signal_table(candidates)
    (folder / DIAGNOSTICS).write_text(json.dumps({**figure_data(candidates), "signals": table}))
    return {
        **describe(prompts, candidates),
        **diversity(compared),
        **{f"auc_{row['signal']}": row["auc"] for row in table},
    }
