#!/usr/bin/env bash
# make_llama_cpp.sh ENV: an environment with llama.cpp, built from source for this processor (about half an hour on one core).
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet --upgrade pip
CMAKE_BUILD_PARALLEL_LEVEL="${JOBS:-1}" nice -n 10 \
    "$1/bin/pip" install --no-binary llama-cpp-python "llama-cpp-python==0.3.36"
"$1/bin/python" -c "import llama_cpp; print('llama-cpp-python', llama_cpp.__version__)"
