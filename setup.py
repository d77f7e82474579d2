"""What pyproject.toml cannot say: a wheel takes the lab's data and notebooks along.

They stay where they are in the repository, and lie in the wheel as ``labutils/shipped/``, laid
out alike; `labutils.paths` finds either. An editable installation needs no copy. Only what is
named here is taken, so that a learner's own notebooks, caches and artifacts never are.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    "constraints.txt",
    "requirements.txt",
    "benchmarks/ten_families.txt",
    "benchmarks/results/*.csv",
    "benchmarks/results/*.jsonl",
    "benchmarks/results/*.png",
    "benchmarks/results/*.txt",
    "benchmarks/results/pruned/*.json",
    "data/*.yaml",
    "data/checkpoints/fbnet_a-*",
    "data/checkpoints/mobilenet_v2-*",
    "data/checkpoints/mobilenet_v3_large*",
    "data/checkpoints/mobilenet_v3_small*",
    "data/jupyter/labconfig/page_config.json",
    "data/recorded/[0-9][0-9].*.json",
    "data/targets/*.yaml",
    "data/tools/*.yaml",
    "notebooks/[0-9][0-9]_*.ipynb",
    "notebooks/*.md",
    "notebooks/images/*.png",
)


class BuildWithData(build_py):
    """Copies `SHIPPED` beside the modules, into a build folder without an earlier build's files."""

    def run(self) -> None:
        """Build."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # all of it would go into the wheel
        super().run()
        if not self.editable_mode:
            for file in shipped():
                target = Path(self.build_lib, "labutils", "shipped", file)
                self.mkpath(str(target.parent))
                self.copy_file(file, str(target))

    def get_source_files(self) -> list[str]:
        """Return what a source distribution needs."""
        return [*super().get_source_files(), *shipped()]


def shipped() -> list[str]:
    """Return the files that `SHIPPED` names, relative to this folder."""
    return sorted(file.as_posix() for pattern in SHIPPED for file in Path().glob(pattern))


setup(cmdclass={"build_py": BuildWithData})
