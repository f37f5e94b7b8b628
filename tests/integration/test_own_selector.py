"""A researcher's own selector, in a file of their own, and what happens when they edit it."""

from pathlib import Path

from jobs import TINY, run_train

SELECTOR = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Own:
    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    def max_kept(self, samples):
        return samples

    def select(self, pool):
        return np.arange(len(pool.similarity))[{order}]
"""
OWN = ("~filter.selector", "+filter.selector={_target_: own_selector.Own}", "tracking=none")


def test_edited_selector_is_said_to_be_other_code_and_computed_again_on_request(tmp_path: Path) -> None:
    file, job = tmp_path / "own_selector.py", (*TINY, *OWN)
    env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def stage_lines(*more: str) -> dict[str, str]:
        ended = run_train(*job, *more, cwd=tmp_path, env=env, fresh=True)
        assert ended.returncode == 0, ended.stderr
        rows = [line.partition(" ") for line in ended.stderr.splitlines()]
        return {"said": ended.stderr, **{name: " ".join(rest.split()) for name, _, rest in rows if " s)  " in rest}}

    file.write_text(SELECTOR.format(order=":"))
    first = stage_lines()
    assert first["filter"].startswith("done")
    assert "other code" not in first["said"]
    file.write_text(SELECTOR.format(order=":-1"))
    recalled = stage_lines()
    assert recalled["filter"].startswith("cached")
    assert "different code (own_selector.py)" in recalled["said"]
    assert "recompute=[filter]" in recalled["said"]
    again = stage_lines("recompute=[filter]")
    assert [again[name].split()[0] for name in ("sft", "generate", "embed")] == ["cached"] * 3
    assert [again[name].split()[0] for name in ("filter", "reference", "align")] == ["done"] * 3
    settled = stage_lines()
    assert all(settled[name].startswith("cached") for name in ("filter", "reference", "align"))
    assert "other code" not in settled["said"]
