"""Run a job with a user's own selector, and again after the user edits it."""

from pathlib import Path

from jobs import TINY, run_train

SELECTOR = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np


@dataclass(frozen=True)
class Custom:
    ranked: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    def max_kept(self, samples):
        return samples

    def select(self, pool):
        return np.arange(len(pool.similarity))[{order}]
"""
SELECTOR_SETTINGS = ("~filter.selector", "+filter.selector={_target_: own_selector.Custom}", "tracking=none")


def test_edited_selector_gives_a_warning_and_is_recomputed_on_request(tmp_path: Path) -> None:
    file, job = tmp_path / "own_selector.py", (*TINY, *SELECTOR_SETTINGS)
    env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}

    def stage_lines(*more: str) -> dict[str, str]:
        ended = run_train(*job, *more, cwd=tmp_path, env=env, fresh=True)
        assert ended.returncode == 0, ended.stderr
        rows = [line.partition(" ") for line in ended.stderr.splitlines()]
        return {"stderr": ended.stderr, **{name: " ".join(rest.split()) for name, _, rest in rows if " s)  " in rest}}

    file.write_text(SELECTOR.format(order=":"))
    first = stage_lines()
    assert first["filter"].startswith("done")
    assert "(own_selector.py" not in first["stderr"]
    file.write_text(SELECTOR.format(order=":-1"))
    cached = stage_lines()
    assert cached["filter"].startswith("cached")
    assert all(text in cached["stderr"] for text in ("code (own_selector.py)", "recompute=[filter]"))
    again = stage_lines("recompute=[filter]")
    assert [again[name].split()[0] for name in ("sft", "generate", "embed")] == ["cached"] * 3
    assert [again[name].split()[0] for name in ("filter", "reference", "align")] == ["done"] * 3
    cached_again = stage_lines()
    assert all(cached_again[name].startswith("cached") for name in ("filter", "reference", "align"))
    assert "(own_selector.py" not in cached_again["stderr"]
