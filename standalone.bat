@echo off
rem Sets up a private environment in .venv (the first time) and runs a command of ddpm_core there; without arguments the demo.
setlocal
cd /d "%~dp0"
if not exist .venv\.ready (
    echo Setting up .venv; this takes a few minutes the first time. 1>&2
    if not exist .venv\Scripts\python.exe (
        py -3.11 -m venv .venv 2>nul || py -3.12 -m venv .venv 2>nul || py -3.10 -m venv .venv 2>nul || python -m venv .venv || exit /b 2
    )
    .venv\Scripts\python -m pip install --quiet --disable-pip-version-check torch==2.13.0 1>&2 || exit /b 1
    .venv\Scripts\python -m pip install --quiet --disable-pip-version-check gradio==6.31.0 safetensors pillow numpy 1>&2 || exit /b 1
    type nul > .venv\.ready
)
if "%~1"=="--with-benchmarks" (
    .venv\Scripts\python -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 diffusers denoising-diffusion-pytorch 1>&2 || exit /b 1
    .venv\Scripts\python -c "import torchvision" 2>nul || .venv\Scripts\python -m pip uninstall --quiet --yes torchvision 1>&2
    echo The benchmarks can run now: .venv\Scripts\python -m benchmarks.training and others. 1>&2
    exit /b 0
)
if "%~1"=="" (
    .venv\Scripts\python -m ddpm_core demo
) else (
    .venv\Scripts\python -m ddpm_core %*
)
exit /b %ERRORLEVEL%
