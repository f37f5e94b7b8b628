"""Test coverage and mean if the judge's server fails in many ways, in a third of the calls."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark_cases import subject, write_answers
from judge_cases import reply_settings
from openai_server import Body, Fault, OpenAIServer
from selfcontrast.client import Servers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import Options
from selfcontrast.evaluation.benchmarks.mt_bench import MTBench
from selfcontrast.evaluation.judges.openai import OpenAIJudge

QUESTIONS = 30  # each has two turns, which gives 60 judgments
OPTIONS = Options(confidence=0.95, n_bootstrap=200, seed=0)


def choices(text: str, finish: str = "stop", **message: Any) -> list[Body]:
    return [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}]


def response(body: list[Body]) -> Fault:
    return Fault(200, json.dumps({"choices": body}).encode())


FAILURES: list[tuple[str, Fault]] = [
    ("api_error", Fault(500)),
    ("api_error", Fault(200, b"<html><body>[[10]]</body></html>")),
    ("api_error", Fault(200, b'{"choices": [{"message": {"content": "[[10]]', promised=500)),
    ("refused", response(choices("", refusal="I will not. [[10]]"))),
    ("refused", response(choices("[[10]]", "content_filter"))),
    ("truncated", response(choices("[[10]] or rather", "length"))),
    ("unparsable", response(choices("It is as good as it gets: 10"))),
    ("unparsable", response(choices("> [[10]]"))),
    ("out_of_range", response(choices("[[100]]"))),
    ("out_of_range", response(choices("[[10]] [[-1]]"))),
]


def fail_every_third(number: int, body: Body) -> Fault | None:
    return FAILURES[number // 3 % len(FAILURES)][1] if number % 3 == 0 else None


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, float], tuple[dict[str, Any], dict[str, Any]]]:
    """Return a function that runs the benchmark with the judge at a URL and returns the summary and the lines."""
    questions = tmp_path / "questions.jsonl"
    rows = [{"question_id": i, "category": "c", "turns": [f"What is {i}?", "Why?"]} for i in range(QUESTIONS)]
    questions.write_text("\n".join(map(json.dumps, rows)))
    scores = write_answers(tmp_path / "scores", {(str(i), 0): [f"first {i}", f"second {i}"] for i in range(QUESTIONS)})

    def run_benchmark(url: str, min_coverage: float) -> tuple[dict[str, Any], dict[str, Any]]:
        servers = Servers([url], concurrency=3, timeout=5, retries=0, initial_backoff=0.01, api_key_env=None)
        benchmark = MTBench(
            grading="single",
            questions=str(questions),
            references=None,
            guided=[],
            limit=None,
            temperature=0.0,
            temperatures={},
            samples=1,
            max_new_tokens=4,
            max_length=120,
            seed=0,
            min_coverage=min_coverage,
            judge=OpenAIJudge("selfcontrast", 0.0, "text", {}, reply_settings(attempts=1), servers),
        )
        summary = benchmark.run(tmp_path, subject([], scores))
        return summary, {line.what: line.value for line in benchmark.lines({"SFT": tmp_path}, OPTIONS)}

    return run_benchmark


def test_run_with_failures_reports_coverage_and_mean_of_usable_judgments(run: Any) -> None:
    with OpenAIServer(lambda body: choices("[[4]]"), fail_every_third).open() as server:
        summary, lines = run(server.url, 0.5)
    assert (summary["judgments"], summary["coverage"]) == (60, 40 / 60)
    expected = {status: 2 * sum(other == status for other, _ in FAILURES) for status, _ in FAILURES}
    assert {status: summary[status] for status in expected} == expected
    assert (lines["mean"].estimate, lines["mean"].n) == (4, 40)
    assert lines["turn 1"].n + lines["turn 2"].n == 40


def test_run_below_min_coverage_fails_and_rerun_asks_only_for_missing(run: Any) -> None:
    with OpenAIServer(lambda body: choices("[[4]]"), fail_every_third).open() as server:
        with pytest.raises(UserError, match=r"40 of 60 .*66\.7%.*min_coverage=0\.9"):
            run(server.url, 0.9)
        server.fault = lambda number, body: None
        summary, lines = run(server.url, 0.9)
        assert len(server.requests) == 80
    assert (summary["coverage"], lines["mean"].estimate, lines["mean"].n) == (1, 4, 60)
