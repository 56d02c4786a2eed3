"""Virtual environments of their own for what must not share one with the tests: each is made once, from wheels.

Nothing here imports what is installed there: the tests start programs with an environment's ``python()``. uv's cache is
linked to, so that a second checkout costs little.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.real.parts.building import PartMissing, made_of, run

PYTHON = "3.11"
"""The one Python that has wheels of all of them."""

PACKAGES = Path("lib", f"python{PYTHON}", "site-packages")
"""Of an environment's folder."""


@dataclass(frozen=True)
class Environment:
    """Pinned packages in a folder of the cache."""

    name: str
    requirements: tuple[str, ...]
    alone: bool = False
    """Only what is named, without what it asks for."""

    @property
    def folder(self) -> Path:
        """Where it is; made on first use, which takes seconds to two minutes."""
        options = ("--no-deps",) if self.alone else ()
        return made_of(self.name, "\n".join((PYTHON, *options, *self.requirements)).encode(), self.make)

    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    def make(self, folder: Path) -> None:
        """Fill the folder."""
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if uv is None:
            raise PartMissing(f"the environment {self.name} needs uv; run `make setup`")
        # Relocatable: the folder gets its name only when all of it is there.
        run([uv, "venv", "--quiet", "--relocatable", "--clear", "--python", PYTHON, str(folder)])
        options = ["--no-deps"] if self.alone else []
        python = str(folder / "bin" / "python")
        run([uv, "pip", "install", "--quiet", *options, "--python", python, *self.requirements])
