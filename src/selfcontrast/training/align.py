"""The align stage: train the fine-tuned model by DPO over K negatives or, as a control, by more supervised training."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfcontrast.errors import UserError
from selfcontrast.models.loading import load_model, load_tokenizer, save_policy
from selfcontrast.models.packing import Group
from selfcontrast.models.rows import why_unshared
from selfcontrast.objectives import Objective
from selfcontrast.store import RESUME
from selfcontrast.training.callbacks import snapshot
from selfcontrast.training.displacement import Displacement
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.packed_module import PackedModule, Record
from selfcontrast.training.reference import score_in_microbatches
from selfcontrast.training.sft import HISTORY, SupervisedFineTuning, model_card
from selfcontrast.training.training import Training

log = logging.getLogger(__name__)

VERSION = 5


def align(
    folder: Path,
    sft: Path,
    dtype: str,
    groups: list[Group],
    stored: StoredScores,
    objective: Objective,
    training: Training,
) -> dict[str, Any]:
    """Write the aligned policy to `folder/model` and its training curves to `folder/history.json`.

    Args:
        sft: the model to start from; its weights are read in `dtype`.
        stored: reference scores of the groups, and the signals that the objective needs.

    Raises:
        UserError: if there are more checkpoints than steps.
    """
    optim, hardware, seed, report = training.optim, training.hardware, training.seed, training.report
    policy, tokenizer = training.adapter.wrap(load_model(sft, dtype), seed), load_tokenizer(sft)
    data = StepData(groups, [], optim, hardware, seed, why_unshared(policy))
    prepare(policy, groups, hardware)
    chunk = hardware.logits_chunk
    steps = data.steps()
    data.snapshots = checkpoint_steps(len(steps), training.checkpoints)
    module: PackedModule
    if objective.uses_negatives:
        max_negatives = max(len(group.negatives) for group in groups)
        # The stored scores are those of the model before quantisation, from which a quantised policy differs before its
        # first step. So it is scored again for every objective.
        rescore = training.adapter.quantised or (hardware.rescore_reference and objective.needs_reference)
        if rescore and stored.reference_is_model:
            stored = replace(stored, reference={**stored.reference, **_rescored(policy, data)})
        module = SelfContrastDPO(policy, optim, len(steps), chunk, report, objective, stored)
        title, details = "Preference training", f"with {max_negatives} negatives per prompt over {len(groups)} prompts"
    else:
        module = SupervisedFineTuning(policy, optim, len(steps), chunk, report)
        title, details = "Supervised fine-tuning, continued", f"on the chosen responses of {len(groups)} groups"
    if not fit(module, data, folder / RESUME, "align"):
        return {}
    save_policy(folder / "model", training.adapter.merge(policy), tokenizer, model_card(title, details, module.history))
    (folder / HISTORY).write_text(json.dumps(module.history))
    for number, step in enumerate(data.snapshots, start=1):
        checkpoint_policy = training.adapter.wrap(load_model(sft, dtype), seed)
        weights = torch.load(snapshot(folder / RESUME, step), map_location="cpu", weights_only=True)
        # Frozen weights are not stored, so `strict` would reject them as missing.
        unexpected = checkpoint_policy.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected, unexpected
        records = [record for record in module.history if record["step"] <= step]
        card = model_card(title, f"{details}, after {step} of {len(steps)} steps", records)
        save_policy(checkpoint_folder(folder, number), training.adapter.merge(checkpoint_policy), tokenizer, card)
    return {
        "prompts": len(groups),
        "negatives_per_prompt": sum(len(group.negatives) for group in groups) / len(groups),
        "steps": len(steps),
        "tokens": steps.tokens,
        **({"checkpoints": data.snapshots} if training.checkpoints else {}),
        **(_displacement(module.history) if objective.uses_negatives and stored.reference_is_model else {}),
    }


def checkpoint_steps(steps: int, checkpoints: int) -> list[int]:
    """Return the steps of all checkpoints except the last. Raise `UserError` if checkpoints outnumber steps."""
    if checkpoints > steps:
        raise UserError(
            f"evaluation.checkpoints={checkpoints}, but preference training has {steps} steps. Lower it to {steps}."
        )
    return [steps * number // checkpoints for number in range(1, checkpoints)]


def checkpoint_folder(folder: Path, number: int) -> Path:
    """Return the folder of one checkpoint in the artifact. `number` counts from 1."""
    return folder / "checkpoints" / str(number)


def _rescored(policy: Any, data: StepData) -> Mapping[str, Tensor]:
    ranks = data.hardware.devices * data.hardware.num_nodes
    scores = score_in_microbatches(
        policy.to(data.hardware.device), (data.steps(rank, ranks) for rank in range(ranks)), data.hardware
    )
    policy.to("cpu").train()
    return scores


def _displacement(history: Sequence[Record]) -> dict[str, Any]:
    displacement = Displacement.of(history)
    if displacement.significant:
        log.warning(
            "align: likelihood displacement: training lowered the log-probability of targets by %.2f nats per "
            "response. See the report, and try objective.nll_weight or objective=nca.",
            -displacement.change,
        )
    return {"target_log_prob_change": displacement.change, "displaced": displacement.significant}
