"""Reference log-probabilities: scored once per (reference weights, sequence), before training, and stored.

Every negative of the pool is scored, so all K of a sweep, every objective, beta and seed read the same file, and no
reference model sits in memory while the policy is trained.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from selfcontrast.models.loading import load_model
from selfcontrast.models.log_probs import token_log_probs
from selfcontrast.models.packing import Group
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.training.recipe import Hardware
from selfcontrast.training.steps import as_pass, into_passes

VERSION = 1
FILE = "reference.parquet"


@torch.no_grad()
def score_reference(folder: Path, model: Path, groups: Sequence[Group], precision: str, hardware: Hardware) -> None:
    """Writes per group the log-probability of every response token, target first, to `folder/reference.parquet`.

    In the arithmetic of training, so that its margins start at zero.
    """
    hardware.apply_threads()
    policy = load_model(model, precision).to(hardware.device).eval()
    use_shared_prompt(policy, hardware.attention)
    ids: list[str] = []
    scores: list[list[list[float]]] = []
    with tqdm(total=len(groups), desc="reference", unit="prompt", disable=None) as bar:
        for share in into_passes(groups, hardware.tokens_per_pass):
            packed = as_pass(share, counts=True).packed.to(hardware.device)
            with hardware.autocast():
                values = iter(token_log_probs(policy, packed, hardware.logits_chunk).tolist())
            for group in share:
                ids.append(group.id)
                scores.append([[next(values) for _ in response] for response in group.responses])
            bar.update(len(share))
    column = pa.array(scores, type=pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"id": ids, "log_probs": column}), folder / FILE)


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """Per group id the summed log-probabilities, target first: [1 + pool]."""
    table = pq.read_table(folder / FILE)
    return {
        name: torch.tensor([sum(response) for response in responses])
        for name, responses in zip(table["id"].to_pylist(), table["log_probs"].to_pylist(), strict=True)
    }
