@echo off
rem Sets up private environments and runs the checks and tests. --long adds the tests that take minutes.
setlocal
cd /d "%~dp0"
call standalone.bat --version >nul || exit /b 1
if not exist .venv\.tests-ready (
    echo Installing the test packages into .venv. 1>&2
    .venv\Scripts\python -m pip install --quiet --disable-pip-version-check "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "diffusers>=0.30" "scipy>=1.11" "selenium>=4.20" "ruff>=0.6" "mypy>=1.11" || exit /b 1
    type nul > .venv\.tests-ready
)
for %%g in (3 4) do (
    if not exist .venv-gradio%%g\.ready (
        echo Setting up .venv-gradio%%g for the tab's tests. 1>&2
        if not exist .venv-gradio%%g\Scripts\python.exe .venv\Scripts\python -m venv .venv-gradio%%g
        .venv-gradio%%g\Scripts\python -m pip install --quiet --disable-pip-version-check -r tests\requirements-gradio%%g.txt || exit /b 1
        type nul > .venv-gradio%%g\.ready
    )
)
.venv\Scripts\python -m ruff check . || exit /b 1
.venv\Scripts\python -m mypy || exit /b 1
if "%~1"=="--long" (
    rem fuzzing by mutation alone: atheris has no build for Windows
    .venv\Scripts\python -m pytest -q -m "long or not long"
) else (
    .venv\Scripts\python -m pytest -q %*
)
exit /b %ERRORLEVEL%
