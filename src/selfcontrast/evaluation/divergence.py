"""The divergence stage: estimate the policy's distance from the fine-tuned model, KL(policy || SFT), and its entropy.

A policy can score higher because it is better, because it is sharper (lower entropy), or because it moved farther from
SFT. KL and entropy are estimated on the answers that the evaluate stage sampled at temperature 1. Policy and reference
score the same packed rows in the same arithmetic. The sampler's log-probabilities are not used: they come from other
arithmetic, and its rounding would look like a difference between the models.

An answer that was cut at `max_new_tokens` counts with the tokens before the cut. So the numbers are for answers of at
most that length. Token ids beyond the tokenizer's (padding of the vocabulary) are never sampled. The log-probabilities
are not corrected for them, since their probability is negligible in a trained model.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.work import Engine, cut, read_table
from selfcontrast.evaluation.dialogue import messages_of
from selfcontrast.evaluation.evaluate import ANSWERS
from selfcontrast.evaluation.finite import check_finite
from selfcontrast.models.loading import load_tokenizer
from selfcontrast.models.packing import Group
from selfcontrast.store import RESUME
from selfcontrast.training.hardware import Hardware
from selfcontrast.training.reference import SCHEMA as SCORED
from selfcontrast.training.reference import Scoring
from selfcontrast.training.steps import length

VERSION = 1
FILE = "divergence.parquet"
POLICY, REFERENCE = "policy", "reference"
TOKENS = pa.list_(pa.float32())

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Models:
    """The models that score a policy's answers.

    Attributes:
        policy: folder of the model that gave the answers.
        reference: folder of the fine-tuned model; None if that is the policy.
        dtype: the type in which the models' weights are loaded.
    """

    policy: Path
    reference: Path | None
    dtype: str
    hardware: Hardware


def k1(policy: Floats, reference: Floats) -> float:
    """Estimate KL(policy || reference) from one response of the policy: log p_policy(y) - log p_reference(y), in nats.

    Its expectation over responses is exactly the KL, for any two models.

    Args:
        policy, reference: log-probabilities of the response's tokens, [n].
    """
    return float((policy - reference).sum())


def k3(policy: Floats, reference: Floats) -> float:
    """Estimate the same KL as `k1` by sum_t (r_t - 1 - log r_t), in nats.

    r_t = p_reference(y_t | y_<t) / p_policy(y_t | y_<t). This is Schulman's estimator ("Approximating KL divergence",
    2020), applied per token, since the ratio of whole responses has a heavier tail. It is never negative and has the
    same expectation as k1: E[r_t - 1] = 0 after every prefix. In a finite sample this holds only if the policy still
    gives the reference's answers. A sharper policy hardly ever samples some of the reference's tokens. Without them
    the mean of r_t - 1 is below 0, and k3 is too low. Therefore the KL in reports is k1.
    """
    change = reference - policy
    return float((np.expm1(change) - change).sum())


def measure(
    folder: Path, answers: Path, decoding: str, models: Models, examples: Sequence[Example], engine: Engine
) -> dict[str, Any]:
    """Write the log-probability of every token of the policy's answers to `folder/divergence.parquet`.

    Columns are `id`, `sample`, `turn`, and lists of nats: `policy`, and `reference` if there is one.

    Args:
        answers: the policy's folder of the evaluate stage.
        decoding: name of the decoding that samples from the policy itself: temperature 1, without truncation.

    Raises:
        UserError: for a log-probability that is not finite; the message names the example.
    """
    answer_rows = pd.read_parquet(answers / ANSWERS)
    answer_rows = answer_rows[answer_rows["decoding"] == decoding].reset_index(drop=True)
    groups, rows_of = answer_groups(answer_rows, examples, Renderer(load_tokenizer(models.policy)))
    table = pa.table({name: answer_rows[name] for name in ("id", "sample", "turn")})
    for role, model in ((POLICY, models.policy), (REFERENCE, models.reference)):
        if model is None:
            continue
        scoring = Scoring(model, models.dtype, models.hardware)
        scored = _scored(folder / RESUME / role, engine, scoring, groups, f"divergence, {role}")
        log_probs: list[list[float]] = [[] for _ in range(len(answer_rows))]
        for name, rows in rows_of.items():
            for row, values in zip(rows, scored[name], strict=True):
                log_probs[row] = values
        check_finite(
            f"the {role}'s log-probability of the answer", answer_rows["id"], [sum(values) for values in log_probs]
        )
        table = table.append_column(role, pa.array(log_probs, TOKENS))
    pq.write_table(table, folder / FILE)
    by_answer = read(folder)
    tokens = int(by_answer["tokens"].sum())
    nats = -float(by_answer["log_prob"].sum())
    return {
        "answers": len(by_answer),
        "tokens": tokens,
        "kl": float(by_answer["k1"].mean()),
        "entropy": nats / len(by_answer),
        "entropy_per_token": nats / max(1, tokens),
    }


def answer_groups(
    answer_rows: pd.DataFrame, examples: Sequence[Example], renderer: Renderer
) -> tuple[list[Group], dict[str, list[int]]]:
    """Group answers to the same prompt; return the groups and, by group id, their rows in `answer_rows` (index from 0).

    Empty answers are left out: their prompts left no room for a token.
    """
    by_id = {example.id: example for example in examples}
    texts = dict(
        zip(
            zip(answer_rows["id"], answer_rows["sample"], answer_rows["turn"], strict=True),
            answer_rows["text"],
            strict=True,
        )
    )
    rows: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    columns = zip(answer_rows["id"], answer_rows["sample"], answer_rows["turn"], answer_rows["tokens"], strict=True)
    for row, (name, sample, turn, tokens) in enumerate(columns):
        if tokens:
            rows[name, turn, sample if turn else 0].append(row)  # all samples have the same first prompt
    groups, rows_of = [], {}
    for (name, turn, sample), indices in rows.items():
        messages = messages_of(by_id[name], [texts[name, sample, before] for before in range(turn)])
        first, *others = (answer_rows["token_ids"][row].tolist() for row in indices)
        key = f"{name}#{sample}#{turn}"
        groups.append(Group(key, renderer.prompt(messages), first, others))
        rows_of[key] = indices
    return groups, rows_of


def _scored(
    shard_folder: Path, engine: Engine, scoring: Scoring, groups: Sequence[Group], label: str
) -> dict[str, list[list[float]]]:
    """Return, by group id, the log-probabilities of its responses' tokens, computed in shards that survive a crash."""
    by_length = sorted(groups, key=lambda group: (length(group), group.id))
    shards = cut(by_length, engine.prompts_per_shard, shard_folder, lambda group: group.id)
    engine.run(scoring, shards, scoring.hardware.device, label, "prompt")
    tables = [read_table(shard.file, schema=SCORED) for shard in shards]
    return {row["id"]: row["log_probs"] for table in tables for row in table.to_pylist()}


def read(folder: Path) -> pd.DataFrame:
    """Read one row per answer, summed over turns: `id`, `sample`, `tokens`, and in nats `log_prob`, `k1`, `k3`."""
    columns: Mapping[str, list[Any]] = pq.read_table(folder / FILE).to_pydict()
    policy = [np.array(values, dtype=np.float64) for values in columns[POLICY]]
    reference = [np.array(values, dtype=np.float64) for values in columns.get(REFERENCE, columns[POLICY])]
    turns = pd.DataFrame(
        {
            "id": columns["id"],
            "sample": columns["sample"],
            "tokens": [len(values) for values in policy],
            "log_prob": [float(values.sum()) for values in policy],
            "k1": [k1(p, q) for p, q in zip(policy, reference, strict=True)],
            "k3": [k3(p, q) for p, q in zip(policy, reference, strict=True)],
        }
    )
    return turns.groupby(["id", "sample"], sort=True, as_index=False).sum()
