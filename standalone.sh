#!/bin/sh
# Sets up a private environment in .venv (the first time) and runs a command of ddpm_core there; without arguments the demo.
set -eu
# called through a link, the environment is the one beside the real script
script=$0
while [ -L "$script" ]; do
    target=$(readlink "$script")
    case $target in
        /*) script=$target ;;
        *) script=$(dirname "$script")/$target ;;
    esac
done
root=$(CDPATH='' cd "$(dirname "$script")" && pwd)
python=$root/.venv/bin/python
# an environment whose Python was removed or upgraded away is made anew
if [ -e "$root/.venv/.ready" ] && ! "$python" -c '' 2>/dev/null; then
    echo "The Python of .venv is gone; setting it up again." >&2
    rm -f "$root/.venv/.ready"
fi
if [ ! -e "$root/.venv/.ready" ] || [ "$root/pyproject.toml" -nt "$root/.venv/.ready" ]; then
    echo "Setting up .venv; this takes a few minutes the first time." >&2
    base=""
    # the newest that this torch has builds for
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [ -z "$base" ]; then
        echo "ddpm: Python 3.10, 3.11, 3.12, 3.13 or 3.14 is needed; install one, or name it with PYTHON=/path/to/python." >&2
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
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m ddpm_core "$@"
