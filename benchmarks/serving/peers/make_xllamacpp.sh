#!/usr/bin/env bash
# make_xllamacpp.sh ENV: an environment with llama.cpp from a wheel, nothing is compiled (a minute).
set -euo pipefail
python3 -m venv "$1"
"$1/bin/pip" install --quiet --upgrade pip
"$1/bin/pip" install --quiet "xllamacpp==2026.10.11549"
"$1/bin/python" -c "import xllamacpp; print(xllamacpp.BUILD_INFO)"
