"""Test that the benchmark runs completely, its contenders have equal gradients, and its FLOPs are correct."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from selfcontrast.models.packing import Group

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def output() -> str:
    """Return the output of the benchmark, run on a GPU if there is one, or on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = f"--device {device} --dtype fp32 --model qwen-tiny --shapes 9,7,3 --rounds 1 --peak-tflops 1"
    command = [sys.executable, "benchmarks/train_step.py", *settings.split()]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
def test_contenders_have_equal_gradients(output: str) -> None:
    rows = {cells[1].strip(): cells for line in output.splitlines() if len(cells := line.split("│")) > 8}
    assert list(rows) == ["pairs", "lean pairs", "TRL", "ours"]
    for cells in rows.values():
        assert float(cells[8]) <= 1e-5
        assert float(cells[2]) > 0
        assert int(cells[5].replace(",", "")) > 0


@pytest.mark.slow
def test_bound_is_the_ratio_of_tokens(output: str) -> None:
    # 2 * 3 * (9 + 7) / (9 + 4 * 7) = 96 / 37
    assert re.search(r"\(P, R, K\) = \(9,7,3\): bound 2\.59x", output)


GROUP = Group("a", [1, 2, 3], [4, 5], [[6, 7], [8]])


def test_packed_and_pairs_work_equal_counts_by_hand() -> None:
    from workload import Work, packed_work, pairs_work

    # Attended positions: 1 + 2 + 3 in the prompt, 1 + 2 + 2 * 3 for a response of two tokens, and 1 + 3 for one token.
    assert packed_work([GROUP]) == Work(tokens=8, scored=5, attended=6 + 9 + 9 + 4)
    # Rows of 5, 5, 5 and 4 tokens: 15 attended positions in each row of five, and 10 in the row of four.
    assert pairs_work([GROUP], every_position=False) == Work(tokens=19, scored=7, attended=55)
    assert pairs_work([GROUP], every_position=True).scored == 19


def test_flops_of_weights_equal_count_of_torch() -> None:
    from workload import Work, random_model

    model: Any = random_model("qwen-tiny", "cpu", torch.float32)
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.arange(7)[None]).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert Work(tokens=7, scored=7, attended=0).flops(model) == products


def test_flops_of_attention_equal_count_by_hand() -> None:
    from workload import Work, random_model

    model: Any = random_model("qwen-tiny", "cpu", torch.float32)
    # 2 layers; 4 heads of 16 dimensions are 64; 2 products of 2 FLOPs each; the backward pass costs two forward passes.
    assert Work(tokens=0, scored=0, attended=10).flops(model) == 2 * 64 * 2 * 2 * 3 * 10
