"""A whole job whose answers a judge behind HTTP grades: it fails clearly, continues, and pays for nothing twice."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from jobs import ROOT, TIMEOUT, TINY, Finished, read_result, run_train, stages, start_train
from openai_server import Body, Fault, OpenAIServer
from selfcontrast.config import build
from selfcontrast.evaluation.contamination import user_text

NAME = "evaluation.benchmarks.mt_bench"
SETTINGS = (
    f"+benchmark@{NAME}=mt_bench",
    f"{NAME}.judge.model=selfcontrast",
    f"{NAME}.judge.servers.retries=0",
    f"{NAME}.judge.reading.attempts=1",
    f"{NAME}.limit=8",
    f"{NAME}.max_length=128",
    f"{NAME}.max_new_tokens=8",
)


def grade(body: Body) -> list[Body]:
    return [{"message": {"role": "assistant", "content": "Well. [[4]]"}, "finish_reason": "stop"}]


def third(number: int, body: Body) -> Fault | None:
    return Fault(200, b"<html>[[10]]</html>") if number % 3 == 0 else None


def test_a_judge_that_fails_for_a_third_of_the_calls(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    with OpenAIServer(grade, third).open() as server:
        url = f"{NAME}.judge.servers.base_urls=[{server.url}]"
        failed = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert failed.returncode == 1
        assert "10 of 16 judgments are usable (62.5%), below min_coverage=0.95" in failed.stderr
        assert len(server.asked) == 16
        server.fault = lambda number, body: None
        done = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    found = read_result(tmp_path / "out")["benchmarks"]
    assert set(found) == {"dialogues", "pairwise", "mt_bench"}
    assert found["mt_bench"]["contamination"] == {"prompts": 8, "flagged": 0}
    assert found["pairwise"]["contamination"] == {}  # it asks the held-out prompts
    grades = {line["value"]["estimate"] for line in found["mt_bench"]["lines"] if line["kind"] == "rating"}
    assert grades == {4}
    prompts = [asked.body["messages"][0]["content"] for asked in server.asked]
    failures = len(prompts) - len(set(prompts))
    assert failures == 6  # those six alone were asked for again


def planted(folder: Path) -> Path:
    """Eight questions of two turns, one of which is a training prompt of the tiny job's."""
    settings = OmegaConf.load(ROOT / "conf/data/builtin.yaml")
    settings.pop("defaults")  # the verifier, a group of its own
    data = build(OmegaConf.merge(settings, {"train": 240, "validation": 24, "test": 48}), "data")
    seen = next(example for example in data.load()["train"] if example.turns)
    turns = [[f"What is the colour of thing {i}?", f"And why is thing {i} so?"] for i in range(7)] + [seen.turns]
    rows = [{"question_id": i, "category": f"part {i % 3}", "turns": asked} for i, asked in enumerate(turns)]
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert user_text(seen) == "\n".join(turns[-1])
    return file


def by_prompt(body: Body) -> list[Body]:
    """A grade that depends on the prompt alone."""
    digest = hashlib.sha256(body["messages"][0]["content"].encode()).digest()
    return [{"message": {"role": "assistant", "content": f"[[{1 + digest[0] % 10}]]"}, "finish_reason": "stop"}]


def kept(folder: Path) -> list[dict[str, Any]]:
    """The judgments of MT-Bench's judge in a store, but for a line that was cut."""
    lines = [line for file in (folder / "store/judgments").glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_killed_while_it_is_judged(finished: Finished, tmp_path: Path) -> None:
    """The rerun continues, requests no stored judgment again, and gives the result of an uninterrupted run."""
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    own = {"questions": planted(tmp_path), "guided": "[]", "judge.servers.concurrency": 1}
    settings = [*TINY, *SETTINGS, *(f"{NAME}.{key}={value}" for key, value in own.items())]
    dead = threading.Event()

    def until_it_dies(body: Body) -> list[Body]:
        """The fourth request gets no answer: by then the three before it are kept."""
        if len(server.asked) == 4:
            dead.wait(TIMEOUT)
        return by_prompt(body)

    with OpenAIServer(until_it_dies).open() as server:
        settings.append(f"{NAME}.judge.servers.base_urls=[{server.url}]")
        with start_train(*settings, cwd=tmp_path) as job:
            while len(server.asked) < 4 or len(kept(tmp_path)) < 3:
                assert job.poll() is None
                time.sleep(0.01)
            os.killpg(job.pid, signal.SIGKILL)
        dead.set()
        assert len(kept(tmp_path)) == 3
        ended = run_train(*settings, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        prompts = [asked.body["messages"][0]["content"] for asked in server.asked]
    paid = len(prompts) - len(set(prompts))
    assert paid == 1  # what was under way when it died
    result = read_result(tmp_path / "out")
    assert len({judgment["key"] for judgment in kept(tmp_path)}) == len(set(prompts))
    found = result["benchmarks"]["mt_bench"]
    assert found["contamination"] == {"prompts": 8, "flagged": 1}
    assert "1 of its 8 prompts resemble a training prompt" in (tmp_path / "out/report.html").read_text()
    for system in ("SFT", "Self-Contrast"):
        table = pd.read_parquet(tmp_path / stages(result)[f"mt_bench {system}"]["path"] / "judgments.parquet")
        mean = next(line for line in found["lines"] if (line["system"], line["what"]) == (system, "mean"))
        assert (len(table), mean["value"]["estimate"]) == (16, pytest.approx(table["rating"].mean()))
        assert list(table["reply"]) == [f"[[{rating:.0f}]]" for rating in table["rating"]]


def test_mt_bench_in_pairs_against_sft(finished: Finished, tmp_path: Path) -> None:
    """The job compares the policy with SFT; single grades of the same answers then sample none again."""
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    prefers = lambda body: [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}]  # noqa: E731
    with OpenAIServer(prefers).open() as server:
        url = f"{NAME}.judge.servers.base_urls=[{server.url}]"
        ended = run_train(*TINY, *SETTINGS, url, f"{NAME}.grading=pairwise", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        first = read_result(tmp_path / "out")
        server.reply = grade
        graded = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert graded.returncode == 0, graded.stderr
    found = {line["what"]: line["value"]["estimate"] for line in first["benchmarks"]["mt_bench"]["lines"]}
    assert {line["system"] for line in first["benchmarks"]["mt_bench"]["lines"]} == {"Self-Contrast"}
    assert (found["win rate over SFT"], found["first position's share"]) == (0.5, 1)
    assert (found["turn 1"], found["turn 2"], found["category writing"]) == (0.5, 0.5, 0.5)
    second = stages(read_result(tmp_path / "out"))
    for system in ("SFT", "Self-Contrast"):
        assert stages(first)[f"mt_bench answers {system}"]["key"] == second[f"mt_bench answers {system}"]["key"]
        assert second[f"mt_bench answers {system}"]["cached"]
    assert "mt_bench SFT" not in stages(first)
    assert "mt_bench SFT" in second
