"""A whole job whose answers a judge behind HTTP grades: it fails clearly, goes on, and pays for nothing twice."""

from pathlib import Path

from jobs import TINY, read_result, run_train
from openai_server import Body, Fault, OpenAIServer

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


def test_a_judge_that_fails_for_a_third_of_the_calls(tmp_path: Path) -> None:
    with OpenAIServer(grade, third).open() as server:
        url = f"{NAME}.judge.servers.urls=[{server.url}]"
        failed = run_train(*TINY, *SETTINGS, url, cwd=tmp_path)
        assert failed.returncode == 1
        assert "10 of 16 judgments can be used, 62.5%, which is below min_coverage=0.95" in failed.stderr
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
