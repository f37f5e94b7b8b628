"""Run whole jobs with candidates from a server, from another model, and from a file."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from jobs import TINY, TINY_FOR_ANY_MODEL, TINY_MODEL, Finished, read_result, run_train, stages
from openai_server import Body, Fault, OpenAIServer
from selfcontrast.models.loading import load_model, load_tokenizer

KEY = "sk-planted-0123456789"


def policy_reply(model: Path) -> Any:
    """Return a reply function that samples from the policy, in vLLM's format."""
    policy, tokenizer = load_model(model).eval(), load_tokenizer(model)
    lock = threading.Lock()

    def reply(body: Body) -> list[Body]:
        ids = torch.tensor([body["prompt"]])
        with lock, torch.inference_mode():
            torch.manual_seed(body["seed"])
            limits = {"max_new_tokens": body["max_tokens"], "num_return_sequences": body["n"]}
            sampled = policy.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, **limits)
        choices = []
        for row in sampled[:, ids.shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
            choices.append({"text": "", "token_ids": row[:end], "finish_reason": "stop" if end else "length"})
        return choices

    return reply


def test_candidates_from_a_server_are_sampled_after_it_starts(finished: Finished, tmp_path: Path) -> None:
    """The server is missing at first, and later refuses one prompt. The server's key is written nowhere."""
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store"), "SERVER_KEY": KEY}
    settings = ("generator=openai", "generator.backend.api_key_env=SERVER_KEY", "generator.max_failed_fraction=0.1")
    early = run_train(*TINY, *settings, "generator.backend.base_urls=[http://127.0.0.1:9/v1]", cwd=tmp_path, env=store)
    assert early.returncode == 1
    model = Path(stages(finished.result)["sft"]["path"]) / "model"
    assert f"vllm serve {model} --served-model-name selfcontrast" in early.stderr
    assert "Traceback" not in early.stderr

    def refuse_the_first(number: int, body: Body) -> Fault | None:
        return None if number else Fault(400, b'{"error": {"message": "not this one"}}')

    with OpenAIServer(policy_reply(model), refuse_the_first, root=str(model), key=KEY).open() as server:
        ended = run_train(*TINY, *settings, f"generator.backend.base_urls=[{server.url}]", cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    summary = stages(read_result(tmp_path / "out"))["generate"]["summary"]
    assert (summary["prompts"], summary["failed"], summary["responses"]) == (15, 1, 15 * 6)
    assert summary["failed_because"] == {"HTTP 400: not this one": 1}
    files = [f for folder in (tmp_path, finished.folder / "store") for f in folder.rglob("*") if f.is_file()]
    assert [f for f in files if KEY.encode() in f.read_bytes()] == []
    assert KEY not in ended.stdout + ended.stderr + early.stderr


def test_job_with_another_model_and_a_system_message_finishes(finished: Finished, tmp_path: Path) -> None:
    """The other model is the SFT model itself, which saves training a second one."""
    store = {"SELFCONTRAST_STORE": str(finished.folder / "store")}
    other = Path(stages(finished.result)["sft"]["path"])  # the artifact, which holds the model
    model = (f"generator.model={other}", "generator.model_samples=2")
    settings = ("generator.system='Be wrong.'", *model, "filter=rank_sum", "trainer.epochs=1")
    ended = run_train(*TINY, *settings, "tracking=none", cwd=tmp_path, env=store)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    assert stages(result)["generate"]["key"] != stages(finished.result)["generate"]["key"]
    assert stages(result)["generate"]["summary"]["responses"] == 16 * 6
    signals = result["similarities"]["signals"]
    assert [row["signal"] for row in signals] == ["similarity", "consensus", "log_prob", "rank_sum"]
    assert stages(result)["filter"]["summary"]["auc_rank_sum"] == signals[-1]["auc"]
    assert "<h3>Signals</h3>" in (tmp_path / "out" / "report.html").read_text()


def test_job_with_imported_candidates_finishes_and_exports_pairs(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"What is {a} plus {b}?",
            "target": f"{a} plus {b} makes {a + b}, as every child knows.",
            "responses": [f"{a} and {b}: {a + b + i}" for i in range(4 + a)],
        }
        for a in range(6)
        for b in range(6)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sampling = ("generator.samples", "generator.max_new_tokens", "generator.prompts")
    settings = [setting for setting in TINY_FOR_ANY_MODEL if not setting.startswith(sampling)]
    files = ("data=jsonl", "data.path=own.jsonl", "generator=import", "generator.path=own.jsonl")
    ended = run_train(
        *settings,
        *TINY_MODEL,
        *files,
        "trainer.epochs=1",
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    responses_shown = [negative for row in result["negatives_shown"] for negative in (row["farthest"], row["nearest"])]
    assert set(responses_shown) <= {response for row in rows for response in row["responses"]}
    summary = stages(result)["generate"]["summary"]
    assert summary["responses"] >= 4 * summary["prompts"] > 0
    # Export the selected negatives.
    command = ["-m", "selfcontrast.export", "out", "--format", "trl", "--negatives", "2", "--output", "pairs.jsonl"]
    exported = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert exported.returncode == 0, exported.stderr
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == 2 * stages(result)["filter"]["summary"]["prompts_used"]
