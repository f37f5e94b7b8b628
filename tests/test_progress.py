"""Test the progress lines of long stages."""

import logging
import sys
import time
from pathlib import Path

import pytest

from doubling import Doubling, shards
from selfcontrast import progress
from selfcontrast.data.candidates import Decoding, Request
from selfcontrast.engines.local import Local
from selfcontrast.generators.backend import Responder
from selfcontrast.generators.hf import HF, OomBatcher
from selfcontrast.training.reference import score_groups
from tiny import groups, hardware, llama, optim, policy_folder


@pytest.fixture
def frequent_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log a progress line every 10 ms."""
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level(logging.INFO, progress.__name__)
    return caplog


def wait_for_lines(log: pytest.LogCaptureFixture, count: int) -> None:
    before = len(log.messages)
    while len(log.messages) < before + count:
        time.sleep(0.005)


def test_stage_of_unknown_size_logs_elapsed_time(frequent_log: pytest.LogCaptureFixture) -> None:
    with progress.heartbeat("evaluate SFT"):
        wait_for_lines(frequent_log, 2)
    assert frequent_log.messages[0].split() == ["evaluate", "SFT", "for", "0", "s", "so", "far"]


def test_counted_stage_logs_finished_units_rate_time_left_and_loss(frequent_log: pytest.LogCaptureFixture) -> None:
    with progress.heartbeat("sft"):
        counter = progress.count(1200, "step")
        wait_for_lines(frequent_log, 1)
        counter.done, counter.loss = 600, 0.5
        wait_for_lines(frequent_log, 2)
        end = len(frequent_log.messages)
    assert all(
        part in frequent_log.messages[end - 1] for part in ("600 of 1,200 steps", "a second", "left", "loss 0.5")
    )
    assert progress.current() is None


def test_work_of_an_earlier_attempt_is_not_in_the_rate() -> None:
    counter = progress.WorkCounter(100, "text", 50)
    counter.start = (counter.start[0] - 10, 50)
    counter.done = 60
    assert counter.line() == "60 of 100 texts, 1 a second, 40 s left"


def test_rate_is_the_mean_since_the_start() -> None:
    """Responses of a batch end together, so none or very many may end between two progress lines."""
    counter = progress.WorkCounter(100, "response", 0)
    counter.start = (counter.start[0] - 10, 0)
    counter.done = 10
    assert counter.line() == counter.line() == "10 of 100 responses, 1 a second, 90 s left"


def test_steps_replayed_after_a_resume_are_not_in_the_rate() -> None:
    counter = progress.WorkCounter(100, "step", 0)
    for step in range(1, 51):
        counter.reach(step, 0.5)
    assert counter.start[1] == 50
    counter.start = (counter.start[0] - 10, 50)
    counter.updated_at -= 1
    counter.reach(51, 0.25)
    assert counter.line() == "51 of 100 steps, 0.1 a second, 8 min left, loss 0.25"


def test_progress_lines_end_when_the_stage_fails(frequent_log: pytest.LogCaptureFixture) -> None:
    @progress.heartbeat("embed")
    def fail() -> None:
        wait_for_lines(frequent_log, 1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    before = len(frequent_log.messages)
    time.sleep(0.05)
    assert len(frequent_log.messages) == before


def test_progress_lines_on_a_terminal_go_only_to_the_log_file(
    frequent_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    assert not frequent_log.messages


def test_engine_and_training_use_counters(tmp_path: Path) -> None:
    from selfcontrast.training.fit import StepData, fit, prepare
    from selfcontrast.training.sft import SupervisedFineTuning

    with progress.heartbeat("generate"):
        Local(2, 2).run(Doubling(tmp_path), shards(tmp_path, [1, 2], [3]), "cpu", "generate", "number")
        assert progress.current() is None  # the engine has ended its counter
        policy, machine, config, train = llama(), hardware(), optim(), groups(8)
        data = StepData(train, [], config, machine, seed=3)
        prepare(policy, train, machine)
        module = SupervisedFineTuning(policy, config, len(data.steps()), 7, lambda record: None)
        fit(module, data, tmp_path, "sft")
        counter = progress.current()
        assert counter is not None
        assert (counter.total, counter.unit) == (len(data.steps()), "step")


@pytest.fixture
def done_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect every counter's number of finished units after each change."""
    counts: list[int] = []
    original = progress.WorkCounter.advance

    def advance(counter: progress.WorkCounter, units: int, unsaved: bool = False) -> None:
        original(counter, units, unsaved)
        counts.append(counter.done)

    monkeypatch.setattr(progress.WorkCounter, "advance", advance)
    return counts


def test_sampling_counts_responses_before_their_shard_is_written(tmp_path: Path, done_counts: list[int]) -> None:
    requests = [Request(f"r{i}", [5, 6, 7]) for i in range(4)]
    decoding = Decoding(samples=3, temperature=1.0, top_p=1.0, max_new_tokens=9, max_length=64)
    responder = Responder(HF("float32", 3), Local(2, 1), "cpu")
    responder.sample(policy_folder(tmp_path / "policy"), requests, decoding, 0, tmp_path / "shards", "generate")
    assert done_counts == sorted(done_counts)
    assert done_counts[-1] == 12
    assert len(set(done_counts)) > 3  # two shards alone would give 6 and 12, but there are four batches


def test_scoring_counts_prompts_before_their_shard_is_written(done_counts: list[int]) -> None:
    progress.count(8, "prompt")
    score_groups(llama(), groups(8), hardware(max_tokens_per_microbatch=64))
    progress.finish()
    assert done_counts[-1] == 8
    assert len(done_counts) > 1


def test_responses_repeated_after_lack_of_memory_are_counted_once(done_counts: list[int]) -> None:
    def draw(requests: object, samples: range, decoding: object, seed: int) -> list[object]:
        progress.advance_unsaved(len(samples), "response")
        if len(samples) > 2:
            raise MemoryError("out of memory")
        return list(samples)

    counter = progress.count(4, "response")
    OomBatcher(4, draw)([Request("r", [5])], Decoding(4, 1.0, 1.0, 9, 64), 0)  # type: ignore[arg-type]
    progress.finish()
    assert done_counts == [4, 0, 2, 4]
    counter.advance(4)  # the engine does this when it has written the shard
    assert (counter.done, counter.unsaved) == (4, 0)


def test_advance_of_another_unit_is_not_counted() -> None:
    counter = progress.count(4, "step")
    progress.advance_unsaved(3, "response")
    progress.finish()
    progress.advance_unsaved(3, "step")
    assert counter.done == 0
