"""Test the GPU check on a CPU: a whole run, steps that fail or take too long, and the report of the results."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_gpu_check_runs_completely_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/gpu_check.py", "--device", "cpu", "--output", str(file)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads(file.read_text())
    assert all("rows" in step for step in results["steps"].values())
    errors = [row["error"] for row in results["steps"]["gradients"]["rows"] if row["arithmetic"] == "float32"]
    assert len(errors) == 6  # two implementations for each of three models
    speed = results["steps"]["speed 9,7,3"]["rows"]
    bounds = {row["contender"]: row.get("bound") for row in speed}
    assert bounds["unpadded rows"] == pytest.approx(4 * (9 + 7) / (9 + 4 * 7))
    assert bounds["lean pairs"] == pytest.approx(2 * 3 * (9 + 7) / (9 + 4 * 7))
    stages = [row["stage"] for row in results["steps"]["ragged job"]["rows"]]
    rescored = "reference, in training's micro-batches"
    assert stages == ["sft", "sample", "reference", rescored, "align", "align, even lengths"]
    assert results["steps"]["ragged job"]["rows"][4]["step0/margin_std"] == 0
    assert results["steps"]["SIGTERM"]["rows"][0]["exit code"] == 143
    last = results["steps"]["loop 5 larger micro-batches"]["rows"][0]
    assert last["with"] == "recompute all, selective, bf16 copy, compiled, larger micro-batches"
    assert last["tokens/s"] > 0


def test_run_records_a_failed_step_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check

    file = tmp_path / "results.json"

    def broken(setting: Any) -> Any:
        raise RuntimeError("no such kernel")

    def count_recorded_steps(setting: Any) -> Any:
        return [{"steps before": len(json.loads(file.read_text())["steps"])}]

    fake_steps = {"before": lambda setting: 1 / 0, "broken": broken, "after": count_recorded_steps}
    monkeypatch.setattr(gpu_check, "steps", lambda setting: fake_steps)
    results: dict[str, Any] = {"steps": {"before": {"rows": []}}}  # from an earlier run, so it is not repeated
    gpu_check.run(gpu_check.Setting.on("cpu"), file, 60, results)
    steps = json.loads(file.read_text())["steps"]
    assert steps["before"] == {"rows": []}
    assert steps["broken"]["error"] == "RuntimeError: no such kernel"
    assert steps["after"]["rows"] == [{"steps before": 2}]


def test_run_without_time_left_skips_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check

    monkeypatch.setattr(gpu_check, "steps", lambda setting: {"late": lambda setting: 1 / 0})
    results: dict[str, Any] = {"steps": {}}
    gpu_check.run(gpu_check.Setting.on("cpu"), tmp_path / "results.json", 1, results)
    assert results["steps"]["late"] == {"skipped": "no time left"}


def test_qlora_without_its_packages_is_skipped_and_does_not_count_as_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_check
    import qlora_memory
    from gpu_report import PARTS, first_line

    monkeypatch.setattr(qlora_memory, "find_spec", lambda name: None)
    step = gpu_check._run_step(qlora_memory.qlora_memory, gpu_check.Setting.on("cpu"), 60)
    assert step == {"skipped": "peft and bitsandbytes missing"}
    assert PARTS["QLoRA"] in first_line([{"steps": {"QLoRA 7B": step}}])


def test_endless_step_is_stopped_after_its_time() -> None:
    import gpu_check

    def endless(setting: Any) -> Any:
        while True:
            pass

    assert gpu_check._run_step(endless, gpu_check.Setting.on("cpu"), 1) == {"error": "StepTimeout: given up after 1 s"}


def test_as_table_equals_table_written_by_hand() -> None:
    from gpu_report import as_table

    rows = [{"name": "a", "x": 1234567, "ok": True}, {"name": "b", "error": 3.2e-7, "x": 2.5}]
    assert as_table("title", {"rows": rows, "seconds": 1.5}).splitlines()[1:] == [
        "### title (1.5 s)",
        "",
        "| name | x | ok | error |",
        "|---|---|---|---|",
        "| a | 1,234,567 | yes |  |",
        "| b | 2.5 |  | 3.20e-07 |",
    ]
    assert as_table("title", {"error": "why"}).endswith("\nwhy")


def test_first_line_names_parts_that_did_not_run() -> None:
    from gpu_report import OUTSIDE, PARTS, first_line

    step: dict[str, Any] = {"rows": []}
    names = ["gradients", "speed 256,256,1", "ragged job", "SIGTERM", "host waits", "training loop", "loop 5 larger"]
    names += ["QLoRA 7B", "compiled ragged"]
    line = first_line([{"steps": dict.fromkeys(names, step)}])
    missing = [PARTS["gradients of flex"], PARTS["flex"], PARTS["options of flex"], OUTSIDE]
    assert [text for text in [*PARTS.values(), OUTSIDE] if text in line] == missing
    everything = [*names, "gradients of flex", "flex 256,64,16", "options of flex"]
    assert first_line([]).count(";") == len(PARTS)
    assert ";" not in first_line([{"steps": dict.fromkeys(everything, step)}])


def test_results_md_is_up_to_date() -> None:
    from gpu_report import REPORT, read_runs, update

    report = REPORT.read_text()
    assert update(report, read_runs()) == report  # if not, run: python benchmarks/gpu_report.py
