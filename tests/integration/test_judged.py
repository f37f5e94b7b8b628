"""Run whole jobs with an HTTP judge: failures are clear, jobs resume, and no judgment is paid for twice."""

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


def fail_every_third(number: int, body: Body) -> Fault | None:
    return Fault(200, b"<html>[[10]]</html>") if number % 3 == 0 else None


def test_judge_that_fails_for_a_third_of_requests_stops_the_job(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    with OpenAIServer(grade, fail_every_third).open() as server:
        url = f"{NAME}.judge.servers.base_urls=[{server.url}]"
        failed = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert failed.returncode == 1
        assert all(words in failed.stderr for words in ("10 of 16", "62.5%", "min_coverage=0.95"))
        assert len(server.requests) == 16
        server.fault = lambda number, body: None
        ended = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    benchmarks = read_result(tmp_path / "out")["benchmarks"]
    assert set(benchmarks) == {"dialogues", "pairwise", "mt_bench"}
    assert benchmarks["mt_bench"]["contamination"] == {"prompts": 8, "flagged": 0}
    assert benchmarks["pairwise"]["contamination"] == {}  # it uses the held-out prompts
    grades = {line["value"]["estimate"] for line in benchmarks["mt_bench"]["lines"] if line["kind"] == "rating"}
    assert grades == {4}
    prompts = [request.body["messages"][0]["content"] for request in server.requests]
    failures = len(prompts) - len(set(prompts))
    assert failures == 6  # only the six failures were requested again


def contaminated_questions(folder: Path) -> Path:
    """Write eight questions of two turns. One is a training prompt of the tiny job."""
    settings = OmegaConf.load(ROOT / "conf/data/builtin.yaml")
    settings.pop("defaults")  # the defaults only name the verifier, which `build` does not need
    data = build(OmegaConf.merge(settings, {"train": 240, "validation": 24, "test": 48}), "data")
    training_example = next(example for example in data.load()["train"] if example.turns)
    turns = [[f"What is the colour of thing {i}?", f"And why is thing {i} so?"] for i in range(7)] + [
        training_example.turns
    ]
    rows = [{"question_id": i, "category": f"part {i % 3}", "turns": pair} for i, pair in enumerate(turns)]
    file = folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert user_text(training_example) == "\n".join(turns[-1])
    return file


def grade_by_prompt(body: Body) -> list[Body]:
    """Return a grade that depends only on the prompt."""
    digest = hashlib.sha256(body["messages"][0]["content"].encode()).digest()
    return [{"message": {"role": "assistant", "content": f"[[{1 + digest[0] % 10}]]"}, "finish_reason": "stop"}]


def stored_judgments(folder: Path) -> list[dict[str, Any]]:
    """Return the judgments of MT-Bench's judge in a store, without an incomplete last line."""
    lines = [line for file in (folder / "store/judgments").glob("*.jsonl") for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_job_killed_during_judging_resumes_without_repeated_requests(finished: Finished, tmp_path: Path) -> None:
    """The resumed job computes its result from the stored judgments."""
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    changes = {"questions": contaminated_questions(tmp_path), "guided": "[]", "judge.servers.concurrency": 1}
    settings = [*TINY, *SETTINGS, *(f"{NAME}.{key}={value}" for key, value in changes.items())]
    job_is_dead = threading.Event()

    def block_the_fourth(body: Body) -> list[Body]:
        """Leave the fourth request without an answer, after three judgments are stored."""
        if len(server.requests) == 4:
            job_is_dead.wait(TIMEOUT)
        return grade_by_prompt(body)

    with OpenAIServer(block_the_fourth).open() as server:
        settings.append(f"{NAME}.judge.servers.base_urls=[{server.url}]")
        with start_train(*settings, cwd=tmp_path) as job:
            while len(server.requests) < 4 or len(stored_judgments(tmp_path)) < 3:
                assert job.poll() is None
                time.sleep(0.01)
            os.killpg(job.pid, signal.SIGKILL)
        job_is_dead.set()
        assert len(stored_judgments(tmp_path)) == 3
        ended = run_train(*settings, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        prompts = [request.body["messages"][0]["content"] for request in server.requests]
    repeated = len(prompts) - len(set(prompts))
    assert repeated == 1  # the request in progress at the kill
    result = read_result(tmp_path / "out")
    assert len({judgment["key"] for judgment in stored_judgments(tmp_path)}) == len(set(prompts))
    mt_bench = result["benchmarks"]["mt_bench"]
    assert mt_bench["contamination"] == {"prompts": 8, "flagged": 1}
    assert "1 of the 8 prompts resemble a training prompt" in (tmp_path / "out/report.html").read_text()
    for system in ("SFT", "Self-Contrast"):
        table = pd.read_parquet(tmp_path / stages(result)[f"mt_bench {system}"]["path"] / "judgments.parquet")
        mean = next(line for line in mt_bench["lines"] if (line["system"], line["what"]) == (system, "mean"))
        assert (len(table), mean["value"]["estimate"]) == (16, pytest.approx(table["rating"].mean()))
        assert list(table["reply"]) == [f"[[{rating:.0f}]]" for rating in table["rating"]]


def test_mt_bench_pairwise_and_single_grading_share_answers(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    prefer_a = lambda body: [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}]  # noqa: E731
    with OpenAIServer(prefer_a).open() as server:
        url = f"{NAME}.judge.servers.base_urls=[{server.url}]"
        ended = run_train(*TINY, *SETTINGS, url, f"{NAME}.grading=pairwise", cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        first = read_result(tmp_path / "out")
        server.reply = grade
        graded = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert graded.returncode == 0, graded.stderr
    values = {line["what"]: line["value"]["estimate"] for line in first["benchmarks"]["mt_bench"]["lines"]}
    assert {line["system"] for line in first["benchmarks"]["mt_bench"]["lines"]} == {"Self-Contrast"}
    assert (values["win rate over SFT"], values["first position's share"]) == (0.5, 1)
    assert (values["turn 1"], values["turn 2"], values["category writing"]) == (0.5, 0.5, 0.5)
    second = stages(read_result(tmp_path / "out"))
    for system in ("SFT", "Self-Contrast"):
        assert stages(first)[f"mt_bench answers {system}"]["key"] == second[f"mt_bench answers {system}"]["key"]
        assert second[f"mt_bench answers {system}"]["cached"]
    assert "mt_bench SFT" not in stages(first)
    assert "mt_bench SFT" in second
