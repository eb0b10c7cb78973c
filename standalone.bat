@echo off
rem Sets up a private environment in .venv (the first time) and runs a command of ddpm_core there; without arguments the demo.
setlocal
rem names of variables are the same in capitals: PYTHON is the user's
set "root=%~dp0"
set "venv_python=%root%.venv\Scripts\python.exe"
rem an environment whose Python was removed or upgraded away is made anew
if exist "%root%.venv\.ready" (
    "%venv_python%" -c "" >nul 2>nul || del "%root%.venv\.ready"
)
rem .ready holds the pyproject.toml that it was set up for
fc /b "%root%pyproject.toml" "%root%.venv\.ready" >nul 2>nul
if errorlevel 1 call :set_up
if errorlevel 1 exit /b %ERRORLEVEL%
if "%~1"=="--with-benchmarks" goto with_benchmarks
set "PYTHONPATH=%root%;%PYTHONPATH%"
if "%~1"=="" goto demo
"%venv_python%" -m ddpm_core %*
exit /b %ERRORLEVEL%

:demo
"%venv_python%" -m ddpm_core demo
exit /b %ERRORLEVEL%

:set_up
echo Setting up .venv; this takes a few minutes the first time. 1>&2
if exist "%root%.venv\.ready" goto install
rem one that was never finished may lack pip: begin anew
set "base="
if defined PYTHON call :try "%PYTHON%"
rem the newest that this torch has builds for
if not defined base call :try py -3.14
if not defined base call :try py -3.13
if not defined base call :try py -3.12
if not defined base call :try py -3.11
if not defined base call :try py -3.10
if not defined base call :try python
if not defined base goto no_python
%base% -m venv --clear "%root%.venv"
if errorlevel 1 exit /b 2
:install
"%venv_python%" -m pip install --quiet --disable-pip-version-check torch==2.13.0 1>&2
if errorlevel 1 exit /b 1
"%venv_python%" -m pip install --quiet --disable-pip-version-check gradio==6.31.0 safetensors pillow numpy 1>&2
if errorlevel 1 exit /b 1
copy /y "%root%pyproject.toml" "%root%.venv\.ready" >nul
exit /b 0

:try
%* -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))" >nul 2>nul
if not errorlevel 1 set "base=%*"
exit /b 0

:no_python
echo ddpm: Python 3.10, 3.11, 3.12, 3.13 or 3.14 is needed; install one, or name it with: set PYTHON=C:\path\to\python.exe 1>&2
exit /b 2

:with_benchmarks
"%venv_python%" -m pip install --quiet --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 diffusers denoising-diffusion-pytorch 1>&2
if errorlevel 1 exit /b 1
"%venv_python%" -c "import torchvision" 2>nul
if errorlevel 1 "%venv_python%" -m pip uninstall --quiet --yes torchvision 1>&2
echo The benchmarks can run now: .venv\Scripts\python -m benchmarks.training and others. 1>&2
exit /b 0
