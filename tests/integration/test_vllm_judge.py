"""Use vLLM's own server as a judge: verdicts are read as by the local judge, and a reply without one has no value."""

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
from tiny import example, tokenizer, train_to_overfit
from vllm_server import serve

LENGTH = 2048
CASE, REPLY = pair("a cat", "a dog"), "[[B]]"
READING = reply_settings(attempts=2, max_tokens=24, max_characters=20_000)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a judge that has learned to reply to one prompt with B (two of three times) or A."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    replies = [REPLY, REPLY, REPLY.replace("B", "A")]
    model = train_to_overfit(
        [example("e", judge_prompt(CASE, READING.max_characters), reply) for reply in replies], width=64
    )
    model.config.max_position_embeddings = LENGTH
    save_policy(folder, model, tokenizer(), "")
    return folder


@pytest.fixture(scope="module")
def url(vllm_python: str, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serve(vllm_python, policy, log, "--max-model-len", str(LENGTH)) as address:
        yield f"{address}/v1"


def judge(url: str, verdict: str = "text", **extra: Any) -> OpenAIJudge:
    servers = Servers([url], concurrency=2, timeout=120, retries=0, initial_backoff=0.1, api_key_env=None)
    return OpenAIJudge("policy", 0.0, verdict, extra, READING, servers)


@pytest.mark.vllm
def test_vllm_judge_gives_the_verdict_of_the_local_judge(url: str, policy: Path, tmp_path: Path) -> None:
    context = judge_context(tmp_path)
    for verdict in ("text", "logprob"):
        with judge(url, verdict).open(context) as remote:
            [judged] = remote([CASE])
        with HFJudge(str(policy), "float32", 0.0, verdict, LENGTH, READING, 1).open(context) as local:
            [expected] = local([CASE])
        assert (judged.status, judged.reply.strip()) == ("ok", REPLY)
        assert judged.value == pytest.approx(expected.value, abs=1e-3)
        assert judged.prompt_tokens == expected.prompt_tokens
    assert 0.2 < judged.value < 0.45


@pytest.mark.vllm
def test_vllm_judge_without_verdicts_fails_below_min_coverage(url: str, tmp_path: Path) -> None:
    """At temperature 2 almost no reply has a verdict."""
    examples = [example(f"e{i}", f"what is {i}?", f"a cat {i}") for i in range(8)]
    scores = write_answers(tmp_path / "scores", {(item.id, 0): ["a dog"] for item in examples})
    random_judge = judge(url, temperature=2.0)
    benchmark = Pairwise(against="target", limit=None, samples=1, min_coverage=1.0, judge=random_judge)
    with pytest.raises(UserError, match=r"of 16 .*min_coverage=1"):
        benchmark.run(tmp_path, subject(examples, scores))
    rows = pd.read_parquet(tmp_path / JUDGMENTS)
    assert len(rows) == 16
    assert list(rows["outcome"].notna()) == list(rows["status"] == "ok")


@pytest.mark.vllm
def test_vllm_judge_prompt_above_the_servers_length_is_an_api_error(url: str, tmp_path: Path) -> None:
    with judge(url).open(judge_context(tmp_path)) as judging:
        long, short = judging([single("the dog " * 2000), CASE])
    assert (long.status, long.value) == ("api_error", None)
    assert short.status == "ok"
