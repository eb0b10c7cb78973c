"""Adds to a wheel what the WebUI wants at the top of the checkout and a wheel has no other place for: scripts, style, languages."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithPage(build_py):
    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the checkout itself is used then
            return
        target = Path(self.build_lib) / "ddpm_core" / "page"
        for name in ("javascript", "localizations"):
            shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True)
        shutil.copy(ROOT / "style.css", target / "style.css")


setup(cmdclass={"build_py": BuildWithPage})
