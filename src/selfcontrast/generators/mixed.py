"""Sample the candidates of each prompt from two models: the fine-tuned one and another."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfcontrast.data.example import Example
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.gather import gather
from selfcontrast.generators.generate import FAILURES, FILE, Generation, choose, generate
from selfcontrast.store import RESUME

SUMS = ("failed", "responses", "tokens")


def generate_mixed(
    folder: Path, settings: Generation, others: int, responder: Responder, model: Path, examples: Sequence[Example]
) -> dict[str, Any]:
    """Write the candidates of both models to `folder/candidates.parquet`, the fine-tuned model's first for each prompt.

    The other model gets the last `others` sample numbers of each prompt. It is sampled with seed + 1, so that two equal
    models do not give every response twice. If one model fails for a prompt, the other model's candidates are kept.

    Args:
        others: number of responses per prompt from `settings.model`.
        model: folder of the fine-tuned model.

    Returns:
        The counts of `generate`; `failed` counts a prompt once per model that failed.
    """
    first = settings.samples - others
    chosen = choose(examples, settings.prompts, settings.seed)
    single = replace(settings, prompts=None, model_samples=None)
    parts = {
        "fine_tuned": replace(single, samples=first, model=None, model_revision=None),
        "other": replace(single, samples=others, seed=(settings.seed + 1) % 2**32),
    }
    counts, failures = [], dict[str, str]()
    for name, part in parts.items():
        part_folder = folder / RESUME / name
        part_folder.mkdir(parents=True, exist_ok=True)
        counts.append(generate(part_folder, part, responder, model, chosen))
        if (file := part_folder / FAILURES).exists():
            reasons = json.loads(file.read_text(encoding="utf-8"))
            failures |= {f"{key} ({name})": reason for key, reason in reasons.items()}
    if failures:
        (folder / FAILURES).write_text(json.dumps(failures, indent=1, ensure_ascii=False), encoding="utf-8")
    fine_tuned, other = (folder / RESUME / name / FILE for name in parts)
    gathered = gather(folder, fine_tuned, other, first)
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
