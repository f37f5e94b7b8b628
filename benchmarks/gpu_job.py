"""Run a small job on ragged lengths: fine-tune, sample, score, align; then align on even lengths for comparison."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_setting import Setting
from gpu_speed import ragged_groups
from gpu_training import hardware, optim
from workload import MODELS, random_group, random_model

from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.generators.sampling import sample
from selfcontrast.models.packing import Group
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import SelfContrast
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.packed_module import PackedModule, Record
from selfcontrast.training.reference import score_groups, score_in_microbatches
from selfcontrast.training.sft import SupervisedFineTuning
from selfcontrast.training.steps import length

OBJECTIVE = SelfContrast(beta=0.1, label_smoothing=0.0, nll_weight=0.0, length_normalised=False, rank_weights=None)
END = 0  # end-of-response token
EVEN = 0.8  # ragged lengths must reach this fraction of the rate on even lengths
PROMPTS_PER_STEP = 16


@dataclass(frozen=True)
class _NoText:
    """A stand-in for a tokenizer of `vocabulary` tokens. The job works on token ids, so text stays empty."""

    vocabulary: int
    pad_token_id: int = END

    def __len__(self) -> int:
        return self.vocabulary

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return ""


def ragged_job(setting: Setting) -> list[dict[str, Any]]:
    """Return seconds and tokens per second of each stage. Step 0 of align must have no margin."""
    name = setting.model if setting.tiny else "llama-0.4b"
    policy, draw, vocabulary = random_model(name, "cpu", torch.float32), random.Random(0), MODELS[name].vocab_size
    table: list[dict[str, Any]] = []
    first = ragged_groups(setting.sft_steps * PROMPTS_PER_STEP, 0, vocabulary, draw, setting.tiny)
    table.append(_train("sft", policy, _named(first), None, setting))

    groups = _named(ragged_groups(setting.prompts, 0, vocabulary, draw, setting.tiny))
    table.append(_timed("sample", lambda: _add_negatives(policy, groups, setting, draw)))
    reference: dict[str, torch.Tensor] = {}
    table.append(_timed("reference", lambda: _score(policy, groups, reference, setting)))
    table.append(_rescore(policy, groups, reference, setting))
    table.append(_train("align", policy, groups, reference, setting))

    even = _named(_even(groups, vocabulary, draw))
    _score(policy, even, reference, setting)
    table.append(_train("align, even lengths", policy, even, reference, setting))
    fraction = table[-2]["tokens/s"] / table[-1]["tokens/s"]
    table[-2] |= {"of even lengths' rate": fraction, "ok": setting.tiny or fraction >= EVEN}
    return table


def _named(groups: Sequence[Group]) -> list[Group]:
    return [replace(group, id=str(i)) for i, group in enumerate(groups)]


def _timed(stage: str, work: Callable[[], int]) -> dict[str, Any]:
    """Time `work`, which returns the number of tokens."""
    start = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - start
    return {"stage": stage, "s": seconds, "tokens/s": tokens / seconds}


def _add_negatives(policy: Any, groups: list[Group], setting: Setting, draw: random.Random) -> int:
    """Sample for every prompt, in batches. Random weights never end a response, so each is cut at a random length."""
    policy.to(setting.device).eval()
    decoding = Decoding(setting.samples, 1.0, 1.0, 4 if setting.tiny else 64, 1024)
    size, tokens = max(1, 1024 // setting.samples), 0
    for start in range(0, len(groups), size):
        batch = groups[start : start + size]
        requests = [Request(group.id, list(group.prompt)) for group in batch]
        with torch.autocast(setting.device, torch.bfloat16, enabled=not setting.tiny):
            candidates = sample(policy, _NoText(policy.config.vocab_size), requests, decoding, 0, {END})
        tokens += sum(len(c.token_ids) for c in candidates)
        for i, group in enumerate(batch):
            drawn = [c.token_ids for c in candidates[i * setting.samples : (i + 1) * setting.samples]]
            cut = [[*ids[: draw.randint(1, len(ids)) - 1], END] for ids in drawn[: setting.samples // 2]]
            groups[start + i] = replace(group, negatives=cut)
    return tokens


def _score(policy: Any, groups: Sequence[Group], into: dict[str, torch.Tensor], setting: Setting) -> int:
    policy.to(setting.device).eval()
    scored = score_groups(policy, groups, hardware(setting))
    into.update({name: torch.tensor([sum(tokens) for tokens in rows]) for name, rows in scored.items()})
    return sum(map(length, groups))


def _rescore(policy: Any, groups: list[Group], reference: dict[str, torch.Tensor], setting: Setting) -> dict[str, Any]:
    """Replace the stored scores by scores from training's micro-batches, and report the margins that this removes."""
    hardware_config, scores = hardware(setting), dict[str, torch.Tensor]()
    steps = StepData(groups, [], optim(PROMPTS_PER_STEP), hardware_config, 0).steps()
    use_shared_prompt(policy, hardware_config.attention)

    def score() -> int:
        scores.update(score_in_microbatches(policy, [steps], hardware_config))
        return steps.tokens

    row = _timed("reference, in training's micro-batches", score)
    changes = torch.stack([scores[name] - reference[name] for name in scores])
    noise = OBJECTIVE.beta * (changes[:, :1] - changes[:, 1:]).square().mean().sqrt()
    reference.update(scores)
    return row | {"step0/margin_std of the others": float(noise)}


def _even(groups: Sequence[Group], vocabulary: int, draw: random.Random) -> list[Group]:
    """Return the same number of groups, all with the mean lengths."""
    prompt = round(statistics.mean(len(g.prompt) for g in groups))
    response = round(statistics.mean(len(r) for g in groups for r in g.responses))
    negatives = len(groups[0].negatives)
    return [random_group((prompt, response, [response] * negatives), vocabulary, draw) for _ in groups]


def _train(
    stage: str, policy: Any, groups: list[Group], reference: dict[str, torch.Tensor] | None, setting: Setting
) -> dict[str, Any]:
    """Train one epoch with the trainer. The reported rate is the median over all steps but the first two."""
    hardware_config, optim_config = hardware(setting), optim(PROMPTS_PER_STEP)
    data, records = StepData(groups, [], optim_config, hardware_config, 0), list[Record]()
    prepare(policy, groups, hardware_config)
    steps, chunk = len(data.steps()), hardware_config.logits_chunk
    module: PackedModule
    if reference is None:
        module = SupervisedFineTuning(policy, optim_config, steps, chunk, records.append)
    else:
        module = SelfContrastDPO(policy, optim_config, steps, chunk, records.append, OBJECTIVE, StoredScores(reference))
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(module, data, Path(folder), stage)
    rates = [record["tokens_per_second"] for record in records]
    row = {
        "stage": stage,
        "s": time.perf_counter() - start,
        "tokens/s": statistics.median(rates[2:] or rates),
        "GiB": records[-1]["peak_memory_gib"],
        "graphs compiled": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }
    return row | {name: records[0][name] for name in ("step0/margin_std",) if name in records[0]}
