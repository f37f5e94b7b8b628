"""Candidates of two models for each prompt: the fine-tuned one, and another."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.gathered import gather
from selfcontrast.generators.generate import FAILURES, FILE, Generation, choose, generate
from selfcontrast.store import RESUME

SUMS = ("failed", "responses", "tokens")


def generate_mixed(
    folder: Path, settings: Generation, others: int, responder: Responder, model: Path, examples: Sequence[Example]
) -> dict[str, Any]:
    """Write the candidates of both models to `folder/candidates.parquet`, each prompt's of the fine-tuned one first.

    The last `others` of a prompt's sample numbers are the other model's, which is sampled with the next seed: two equal
    models must not give every response twice. A prompt that one model has not answered keeps the other's candidates.

    Args:
        model: the fine-tuned one; the other is the settings' own.

    Returns:
        The counts of `generate`; `failed` counts a prompt once for each model that has not answered it.
    """
    first = settings.samples - others
    chosen = choose(examples, settings.prompts, settings.seed)
    alone = replace(settings, prompts=None, model_samples=None)
    parts = {
        "own": replace(alone, samples=first, model=None, model_revision=None),
        "other": replace(alone, samples=others, seed=settings.seed + 1),
    }
    counts, failures = [], dict[str, str]()
    for name, part in parts.items():
        place = folder / RESUME / name
        place.mkdir(parents=True, exist_ok=True)
        counts.append(generate(place, part, responder, model, chosen))
        if (file := place / FAILURES).exists():
            failures |= {f"{key} ({name})": why for key, why in json.loads(file.read_text(encoding="utf-8")).items()}
    if failures:
        (folder / FAILURES).write_text(json.dumps(failures, indent=1, ensure_ascii=False), encoding="utf-8")
    own, other = (folder / RESUME / name / FILE for name in parts)
    gathered = gather(folder, own, other, first)
    sums = {name: sum(count[name] for count in counts) for name in SUMS}
    responses = max(1, sums["responses"])
    return {
        **gathered,
        **sums,
        "prompts_without_room": counts[0]["prompts_without_room"],
        **({"failed_because": Counter(failures.values())} if failures else {}),
        "tokens_per_response": sums["tokens"] / responses,
        "cut_share": sum(count["cut_share"] * count["responses"] for count in counts) / responses,
    }
