#!/bin/sh
# Sets up private environments and runs the checks and tests. --long adds the tests that take minutes; other arguments go to pytest.
set -eu
CDPATH='' cd "$(dirname "$0")"
./standalone.sh --version >/dev/null
python=.venv/bin/python
if [ ! -e .venv/.tests-ready ] || [ pyproject.toml -nt .venv/.tests-ready ]; then
    echo "Installing the test packages into .venv." >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
        'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.5' 'hypothesis>=6.100' 'diffusers>=0.30' 'scipy>=1.11' 'selenium>=4.20' 'ruff>=0.6' 'mypy>=1.11'
    # CUDA builds of torch bring Triton along; without one its interpreter still checks the kernels, where there is a build of it
    "$python" -c 'import triton' 2>/dev/null ||
        "$python" -m pip install --quiet --disable-pip-version-check triton==3.6.0 2>/dev/null ||
        echo "Triton has no build for this system; the tests of the GPU kernels are skipped." >&2
    touch .venv/.tests-ready
fi
minor=$("$python" -c 'import sys; print(sys.version_info[1])')
waited=""  # for the environments of older gradios, which are set up beside each other and the checks
for generation in 3 4; do
    # no WebUI with gradio 3 runs on Python 3.13 and none with gradio 4 on 3.14: their packages have no builds for it
    if [ "$minor" -ge $((10 + generation)) ]; then
        echo "gradio $generation has no packages for Python 3.$minor; the tab's tests on it are skipped." >&2
        continue
    fi
    environment=.venv-gradio$generation
    list=tests/requirements-gradio$generation.txt
    if [ ! -e "$environment/.ready" ] || [ "$list" -nt "$environment/.ready" ]; then
        echo "Setting up $environment for the tab's tests." >&2
        (
            [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
            "$environment/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list"
            touch "$environment/.ready"
        ) &
        waited="$waited $!"
    fi
done
"$python" -m ruff check .
"$python" -m ruff format --check --quiet .
"$python" -m mypy
for process in $waited; do
    wait "$process"
done
if [ "${1:-}" = "--long" ]; then
    shift
    if ! "$python" -c 'import atheris' 2>/dev/null; then
        "$python" -m pip install --quiet --disable-pip-version-check 'atheris>=2.3' 2>/dev/null ||
            echo "atheris has no build for this system: fuzzing by mutation alone." >&2
    fi
    exec "$python" -m pytest -q -m 'long or not long' "$@"
fi
if [ $# -gt 0 ]; then
    exec "$python" -m pytest -q "$@"
fi
# two side by side, since many wait for a browser or a process, each with one thread: two with two of each take 2.5 times as long on two cores;
# then those that measure
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m pytest -q -n 2 --dist worksteal -m 'not long and not alone'
exec "$python" -m pytest -q -m 'alone and not long'
