"""The sft stage: supervised fine-tuning on (prompt, target)."""

import json
import logging
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcontrast.data.example import Example, Split
from selfcontrast.data.rendering import Renderer
from selfcontrast.errors import UserError
from selfcontrast.models.loading import Model, save_policy
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group
from selfcontrast.store import RESUME
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.packed_module import PackedModule, Record, Sums
from selfcontrast.training.steps import MicroBatch, Step
from selfcontrast.training.training import Training

log = logging.getLogger(__name__)

VERSION = 4
HISTORY = "history.json"


class SupervisedFineTuning(PackedModule):
    """Cross-entropy on the target of the last turn: the mean over all target tokens of a step."""

    def losses(self, microbatch: MicroBatch) -> tuple[Tensor, Sums]:
        log_probs = response_log_probs(self.policy, microbatch.packed, self.chunk_size)[:, 0]
        tokens = microbatch.packed.lengths[:, 0].sum().to(log_probs.dtype)
        return -log_probs, {"loss": torch.stack([-log_probs.detach().sum(), tokens])}

    def total(self, step: Step) -> int:
        return step.target_tokens


def fine_tune(
    folder: Path,
    model: Model,
    examples: Mapping[Split, Sequence[Example]],
    training: Training,
) -> dict[str, Any]:
    """Write the fine-tuned policy to `folder/model` and its training curves to `folder/history.json`.

    With 0 epochs the model counts as fine-tuned: it is written unchanged, with the job's chat template.

    Raises:
        UserError: if no training example fits into max_length.
    """
    optim, hardware, seed = training.optim, training.hardware, training.seed
    policy, tokenizer = model.start(texts(examples["train"]), seed)
    parameters = sum(p.numel() for p in policy.parameters())
    if optim.epochs == 0:
        save_policy(folder / "model", policy, tokenizer, model_card("Fine-tuned elsewhere", "for 0 epochs", []))
        return {"examples": 0, "parameters": parameters, "steps": 0, "tokens": 0}
    renderer = Renderer(tokenizer)
    train, held_out = ([e for e in examples[split] if e.has_target] for split in ("train", "validation"))
    if skipped := len(examples["train"]) - len(train):
        log.info("sft: skipped %d of %d training prompts, which have no target", skipped, len(examples["train"]))
    groups, dropped = supervised_groups(renderer, train, optim.max_length)
    validation, _ = supervised_groups(renderer, held_out, optim.max_length)
    if not groups:
        raise UserError(f"no training example fits into sft.max_length={optim.max_length} tokens. Raise it.")
    if dropped:
        log.warning(
            "sft: %d of %d examples are left out, because they are longer than sft.max_length=%d tokens",
            dropped,
            len(train),
            optim.max_length,
        )
    if changed := changed_targets(renderer, train, groups):
        log.warning(
            "sft: %d of %d targets become another text when tokenized, such as the target of %s. Text that spells a "
            "special token is read as that token, and an end token ends the target.",
            len(changed),
            len(groups),
            changed[0],
        )
    data = StepData(groups, validation, optim, hardware, seed)
    policy = training.adapter.wrap(policy, seed)
    prepare(policy, groups, hardware)
    chunk = hardware.logits_chunk
    module = SupervisedFineTuning(policy, optim, len(data.steps()), chunk, training.report)
    if not fit(module, data, folder / RESUME, "sft"):
        return {}
    card = model_card("Supervised fine-tuning", "on prompts and targets alone", module.history)
    save_policy(folder / "model", training.adapter.merge(policy), tokenizer, card)
    (folder / HISTORY).write_text(json.dumps(module.history))
    steps = data.steps()
    counts = {"steps": len(steps), "tokens": steps.tokens}
    facts = {"examples": len(groups), "dropped": dropped, "targets_changed": len(changed)}
    return {**facts, "parameters": parameters, **counts}


def supervised_groups(renderer: Renderer, examples: Sequence[Example], max_length: int) -> tuple[list[Group], int]:
    """Return groups without negatives, and the number of examples that are longer than `max_length` tokens."""
    groups = []
    for example in examples:
        prompt, target = renderer.example(example)
        if len(prompt) + len(target) <= max_length:
            groups.append(Group(example.id, array("i", prompt), array("i", target), []))
    return groups, len(examples) - len(groups)


def changed_targets(renderer: Renderer, examples: Sequence[Example], groups: Sequence[Group]) -> list[str]:
    """Return the ids of the examples whose tokens decode to another text than their target."""
    targets = {example.id: example.target.strip() for example in examples}
    return [group.id for group in groups if renderer.text(group.target) != targets[group.id]]


def texts(examples: Sequence[Example]) -> list[str]:
    """Return all texts that a tokenizer may be trained on."""
    return [text for e in examples for text in (*(m["content"] for m in e.prompt), e.target) if text]


def model_card(title: str, details: str, history: Sequence[Record]) -> str:
    """Return the README.md of a policy folder."""
    last = next((r for r in reversed(history) if "loss" in r), {})
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in last.items() if "_rank_" not in name)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [self-contrast, selfcontrast]
---
# {title}

Trained by selfcontrast, {details} (Self-Contrast, arXiv 2404.00604). Loads with
`AutoModelForCausalLM.from_pretrained`; prompts go through the tokenizer's chat template. The artifact's
`manifest.json` records its settings and inputs.

| last training step | |
|---|---|
{rows}
"""
