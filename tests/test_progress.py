"""Progress lines of long stages."""

import logging
import sys
import time
from pathlib import Path

import pytest

from doubling import Doubling, shards
from selfcontrast import progress
from selfcontrast.engines.local import Local
from tiny import groups, hardware, llama, optim


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log a progress line every 10 ms."""
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, progress.__name__)
    return caplog


def wait_for_lines(log: pytest.LogCaptureFixture, count: int) -> None:
    seen = len(log.messages)
    while len(log.messages) < seen + count:
        time.sleep(0.005)


def test_stage_of_unknown_size_logs_elapsed_time(often: pytest.LogCaptureFixture) -> None:
    with progress.heartbeat("evaluate SFT"):
        wait_for_lines(often, 2)
    assert often.messages[0].split() == ["evaluate", "SFT", "for", "0", "s", "so", "far"]


def test_counted_stage_logs_done_rate_time_left_and_loss(often: pytest.LogCaptureFixture) -> None:
    with progress.heartbeat("sft"):
        counted = progress.count(1200, "step")
        wait_for_lines(often, 1)
        counted.done, counted.loss = 600, 0.5
        wait_for_lines(often, 2)
        end = len(often.messages)
    assert any("600 of 1,200 steps" in line and "a second" in line and "left" in line for line in often.messages)
    assert often.messages[end - 1].endswith("600 of 1,200 steps, loss 0.5")  # no progress since the previous line
    assert progress.current() is None


def test_work_of_an_earlier_attempt_is_not_in_the_rate() -> None:
    counted = progress.WorkCounter(100, "text", 50)
    counted.last = (counted.last[0] - 10, 50)
    counted.done = 60
    assert counted.line() == "60 of 100 texts, 1 a second, 40 s left"


def test_steps_replayed_after_a_resume_are_not_in_the_rate() -> None:
    counted = progress.WorkCounter(100, "step", 0)
    for step in range(1, 51):
        counted.reach(step, 0.5)
    assert counted.last[1] == 50
    counted.last = (counted.last[0] - 10, 50)
    counted.updated_at -= 1
    counted.reach(51, 0.25)
    assert counted.line() == "51 of 100 steps, 0.1 a second, 8 min left, loss 0.25"


def test_lines_end_when_the_stage_fails(often: pytest.LogCaptureFixture) -> None:
    @progress.heartbeat("embed")
    def fails() -> None:
        wait_for_lines(often, 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    seen = len(often.messages)
    time.sleep(0.05)
    assert len(often.messages) == seen


def test_lines_on_a_terminal_go_to_the_log_file_only(
    often: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    handler = logging.FileHandler(tmp_path / "train.log")
    logging.getLogger().addHandler(handler)
    try:
        with progress.heartbeat("generate"):
            while not (tmp_path / "train.log").read_text().count("\n") > 1:
                time.sleep(0.005)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert not often.messages


def test_engine_and_training_use_counters(tmp_path: Path) -> None:
    from selfcontrast.training.fit import StepData, fit, prepare
    from selfcontrast.training.sft import SupervisedFineTuning

    with progress.heartbeat("generate"):
        Local(2, 2).run(Doubling(tmp_path), shards(tmp_path, [1, 2], [3]), "cpu", "generate", "number")
        assert progress.current() is None  # the engine ended its counter
        policy, machine, how, train = llama(), hardware(), optim(), groups(8)
        data = StepData(train, [], how, machine, seed=3)
        prepare(policy, train, machine)
        module = SupervisedFineTuning(policy, how, len(data.steps()), 7, lambda record: None)
        fit(module, data, tmp_path, "sft")
        counted = progress.current()
        assert counted is not None
        assert (counted.total, counted.unit) == (len(data.steps()), "step")
