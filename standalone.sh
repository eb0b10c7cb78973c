#!/usr/bin/env bash
# Sets up a private environment in .venv (the first time) and runs a command of ddpm_core there; without arguments the demo.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=$root/.venv/bin/python
if [ ! -e "$root/.venv/.ready" ] || [ "$root/pyproject.toml" -nt "$root/.venv/.ready" ]; then
    echo "Setting up .venv; this takes a few minutes the first time." >&2
    base=""
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.10 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [ -z "$base" ]; then
        echo "ddpm: Python 3.10, 3.11 or 3.12 is needed; install one, or name it with PYTHON=/path/to/python." >&2
        exit 2
    fi
    # one that was never finished may lack pip: begin anew
    [ -e "$root/.venv/.ready" ] || "$base" -m venv --clear "$root/.venv"
    "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 1>&2
    "$python" -m pip install --quiet --disable-pip-version-check gradio==6.31.0 safetensors pillow numpy 1>&2
    touch "$root/.venv/.ready"
fi
if [ "${1:-}" = --with-benchmarks ]; then
    "$python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 diffusers denoising-diffusion-pytorch 1>&2
    # PyPI's torchvision does not load beside a CPU build of torch, and then other packages cannot be imported either
    if ! "$python" -c 'import torchvision' 2>/dev/null; then
        echo "torchvision does not work here; the comparison with denoising-diffusion-pytorch is left out." >&2
        "$python" -m pip uninstall --quiet --yes torchvision 1>&2
    fi
    echo "The benchmarks can run now: .venv/bin/python -m benchmarks.training and others." >&2
    exit 0
fi
[ $# -gt 0 ] || set -- demo
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m ddpm_core "$@"
