"""A real vLLM on the processor, for whoever has one: ``VLLM_PYTHON`` names the Python that has it.

``benchmarks/serving/peers/make_vllm_cpu.sh ENV`` makes such an environment.
"""

import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.e2e.stack import clean_environment
from tests.processes import wait_until

# Importing it takes a minute on a busy core, and it imports twice.
START_SECONDS = 600.0
MAX_LENGTH = 256
MAX_LORAS = 2
MAX_RANK = 16
# Threads are not bound to all cores, keys and values are kept in 1 GB, adapters come at run time.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


def vllm_python() -> str | None:
    """The Python that has vLLM; None where nobody named one."""
    return os.environ.get("VLLM_PYTHON")  # noqa: TID251  (no setting of the service)


class RealVllm:
    """One server of one model, in fp32.

    Args:
        python: The Python that has vLLM.
        model: Folder of the model.
        port: Where it is to listen.
        log: What it says is written there.
    """

    def __init__(self, python: str, model: Path, *, port: int, log: Path) -> None:
        # Not the command `vllm`: that of the package vllm-cpu looks for a package called vllm.
        self._argv = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        self._argv += ["--served-model-name", "as-vllm-calls-it", "--host", "127.0.0.1"]
        self._argv += ["--port", str(port), "--dtype", "float32", "--enforce-eager"]
        self._argv += ["--max-model-len", str(MAX_LENGTH), "--max-num-seqs", "16"]
        self._argv += ["--enable-lora", "--max-loras", str(MAX_LORAS)]
        self._argv += ["--max-lora-rank", str(MAX_RANK)]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self._log.open("a", encoding="utf-8") as log:
            process = self._process = subprocess.Popen(
                self._argv,
                env=clean_environment() | _ENVIRONMENT,
                stdout=log,
                stderr=log,
                start_new_session=True,  # it has children, which are killed with it
            )
        wait_until(lambda: self._answers() or process.poll() is not None, seconds=START_SECONDS)
        assert process.poll() is None, self._log.read_text(encoding="utf-8")[-4000:]

    def kill(self) -> None:
        """Kills it and its children with SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)

    def metric(self, name: str) -> float:
        """A number of its ``/metrics``, summed over labels."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))

    def models(self) -> set[str]:
        """The adapters that it knows."""
        listed = httpx.get(f"{self.url}/v1/models", trust_env=False).json()["data"]
        return {model["id"] for model in listed if model["parent"]}

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False
