"""vLLM's own server as a judge: what it says is read and weighed, and nonsense is never a mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark_cases import subject, write_answers
from judge_cases import judge_context, pair, reply_settings, single
from selfcontrast.client import Servers
from selfcontrast.errors import UserError
from selfcontrast.evaluation.benchmarks.benchmark import JUDGMENTS
from selfcontrast.evaluation.benchmarks.pairwise import Pairwise
from selfcontrast.evaluation.judges.hf import HFJudge
from selfcontrast.evaluation.judges.openai import OpenAIJudge
from selfcontrast.evaluation.judges.prompts import judge_prompt
from selfcontrast.models.loading import save_policy
from tiny import example, taught, tokenizer
from vllm_server import serve

LENGTH = 2048
CASE, REPLY = pair("a cat", "a dog"), "[[B]]"
READING = reply_settings(attempts=2, max_tokens=24, max_characters=20_000)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that replies to one prompt as it has learned, two times of three with B and else with A."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    replies = [REPLY, REPLY, REPLY.replace("B", "A")]
    model = taught([example("e", judge_prompt(CASE, READING.max_characters), reply) for reply in replies], width=64)
    model.config.max_position_embeddings = LENGTH
    save_policy(folder, model, tokenizer(), "")
    return folder


@pytest.fixture(scope="module")
def url(vllm_python: str, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serve(vllm_python, policy, log, "--max-model-len", str(LENGTH)) as found:
        yield f"{found}/v1"


def judge(url: str, verdict: str = "text", **extra: Any) -> OpenAIJudge:
    servers = Servers([url], concurrency=2, timeout=120, retries=0, initial_backoff=0.1, api_key_env=None)
    return OpenAIJudge("policy", 0.0, verdict, extra, READING, servers)


@pytest.mark.vllm
def test_its_verdict_is_read_and_weighed_as_in_this_process(url: str, policy: Path, tmp_path: Path) -> None:
    near = judge_context(tmp_path)
    for verdict in ("text", "logprob"):
        with judge(url, verdict).open(near) as there:
            [found] = there([CASE])
        with HFJudge(str(policy), "float32", 0.0, verdict, LENGTH, READING, 1).open(near) as here:
            [expected] = here([CASE])
        assert (found.status, found.reply.strip()) == ("ok", REPLY)
        assert found.value == pytest.approx(expected.value, abs=1e-3)
        assert found.prompt_tokens == expected.prompt_tokens
    assert 0.2 < found.value < 0.45


@pytest.mark.vllm
def test_nonsense_is_no_mean(url: str, tmp_path: Path) -> None:
    """At a temperature of 2 hardly a reply has a verdict: the run says how many have one, and fails below its bound."""
    examples = [example(f"e{i}", f"what is {i}?", f"a cat {i}") for i in range(8)]
    scores = write_answers(tmp_path / "scores", {(one.id, 0): ["a dog"] for one in examples})
    wild = judge(url, temperature=2.0)
    of = Pairwise(against="target", limit=None, samples=1, min_coverage=1.0, judge=wild)
    with pytest.raises(UserError, match=r"of 16 .*min_coverage=1"):
        of.run(tmp_path, subject(examples, scores))
    rows = pd.read_parquet(tmp_path / JUDGMENTS)
    assert len(rows) == 16
    assert list(rows["outcome"].notna()) == list(rows["status"] == "ok")


@pytest.mark.vllm
def test_a_prompt_that_is_longer_than_the_server_reads_is_an_error_of_that_judgment(url: str, tmp_path: Path) -> None:
    with judge(url).open(judge_context(tmp_path)) as judging:
        long, short = judging([single("the dog " * 2000), CASE])
    assert (long.status, long.value) == ("api_error", None)
    assert short.status == "ok"
