@echo off
rem Sets up private environments and runs the checks and tests. --long adds the tests that take minutes; other arguments go to pytest.
setlocal
cd /d "%~dp0"
call standalone.bat --version >nul
if errorlevel 1 exit /b 1
set "venv_python=.venv\Scripts\python.exe"
fc /b pyproject.toml .venv\.tests-ready >nul 2>nul
if errorlevel 1 call :test_packages
if errorlevel 1 exit /b 1
rem no WebUI with gradio 3 runs on Python 3.13 and none with gradio 4 on 3.14: their packages have no builds for it
for /f %%m in ('%venv_python% -c "import sys; print(sys.version_info[1])"') do set "minor=%%m"
for %%g in (3 4) do call :gradio %%g || exit /b 1
%venv_python% -m ruff check . || exit /b 1
%venv_python% -m ruff format --check --quiet . || exit /b 1
%venv_python% -m mypy || exit /b 1
if "%~1"=="--long" goto long
if not "%~1"=="" goto some
rem two side by side, since many wait for a browser or a process; then those that measure
rem each with one thread, as in test.sh
set OMP_NUM_THREADS=1
%venv_python% -m pytest -q -n 2 --dist worksteal -m "not long and not alone" || exit /b 1
set OMP_NUM_THREADS=
%venv_python% -m pytest -q -m "alone and not long"
exit /b %ERRORLEVEL%

:some
%venv_python% -m pytest -q %*
exit /b %ERRORLEVEL%

:long
rem fuzzing by mutation alone: atheris has no build for Windows
set "rest="
:collect
shift
if "%~1"=="" goto run_long
set "rest=%rest% %1"
goto collect
:run_long
%venv_python% -m pytest -q -m "long or not long" %rest%
exit /b %ERRORLEVEL%

:test_packages
echo Installing the test packages into .venv. 1>&2
%venv_python% -m pip install --quiet --disable-pip-version-check "pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.5" "hypothesis>=6.100" "diffusers>=0.30" "scipy>=1.11" "selenium>=4.20" "ruff>=0.6" "mypy>=1.11"
if errorlevel 1 exit /b 1
copy /y pyproject.toml .venv\.tests-ready >nul
exit /b 0

:gradio
set /a "first_without=10+%1"
if %minor% geq %first_without% echo gradio %1 has no packages for Python 3.%minor%; the tab's tests on it are skipped. 1>&2
if %minor% geq %first_without% exit /b 0
fc /b tests\requirements-gradio%1.txt .venv-gradio%1\.ready >nul 2>nul
if not errorlevel 1 exit /b 0
echo Setting up .venv-gradio%1 for the tab's tests. 1>&2
if not exist .venv-gradio%1\Scripts\python.exe %venv_python% -m venv .venv-gradio%1
.venv-gradio%1\Scripts\python -m pip install --quiet --disable-pip-version-check -r tests\requirements-gradio%1.txt
if errorlevel 1 exit /b 1
copy /y tests\requirements-gradio%1.txt .venv-gradio%1\.ready >nul
exit /b 0
