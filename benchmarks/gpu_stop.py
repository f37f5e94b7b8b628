"""Measure the seconds from SIGTERM to the end of a training process, including its checkpoint.

python benchmarks/gpu_stop.py FOLDER DEVICE [compile]     # trains until SIGTERM
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_setting import Setting, stand_in_for_file_formats

LIMIT = 30  # seconds from the signal to the end
ENDED = 143  # exit code of a process ended by SIGTERM
STEPS_BEFORE = 3


def seconds_to_exit(setting: Setting) -> list[dict[str, Any]]:
    """Measure with and without compiled layers. On a CPU, where compiling is slow, measure only without."""
    return [_stop(setting, compiled) for compiled in ((False,) if setting.tiny else (False, True))]


def _stop(setting: Setting, compiled: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder, setting.device, *(["compile"] if compiled else [])]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            steps = sum(1 for _, line in zip(range(STEPS_BEFORE), process.stdout, strict=False) if line)
            start = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=2 * LIMIT)
        except subprocess.TimeoutExpired:
            errors = "still running"
        finally:
            process.kill()
        seconds, saved = time.perf_counter() - start, (Path(folder) / "last.ckpt").exists()
    code = process.returncode
    return {
        "compiled": compiled,
        "steps before": steps,
        "s to exit": seconds,
        "exit code": code,
        "checkpoint": saved,
        "ok": seconds <= LIMIT and code == ENDED and saved,
        **({} if code == ENDED else {"last line": errors.strip().rpartition("\n")[2][:200]}),
    }


def train_until_sigterm(folder: Path, device: str, compiled: bool) -> None:
    """Train, and print a line per step."""
    import torch
    from gpu_training import hardware, optim
    from workload import random_group, random_model

    from selfcontrast.preemption import install_handlers
    from selfcontrast.training.fit import StepData, fit, prepare
    from selfcontrast.training.sft import SupervisedFineTuning

    install_handlers()
    setting, draw = Setting.on(device), random.Random(0)
    hardware_config = replace(hardware(setting), compile=compiled)
    groups = [random_group((9, 7, []), 512, draw) for _ in range(64)]
    policy = random_model("qwen-tiny", "cpu", torch.float32)
    prepare(policy, groups, hardware_config)
    endless = replace(optim(8), epochs=10**6)
    data = StepData(groups, [], endless, hardware_config, 0)
    report = lambda record: print("step", record["step"], flush=True)  # noqa: E731
    module = SupervisedFineTuning(policy, endless, len(data.steps()), hardware_config.logits_chunk, report)
    fit(module, data, folder, "stop")


if __name__ == "__main__":
    stand_in_for_file_formats()
    train_until_sigterm(Path(sys.argv[1]), sys.argv[2], "compile" in sys.argv[3:])
