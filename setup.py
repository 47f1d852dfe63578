"""The installable package: `demopsd_dist`, with `workers`, `launch`, configs and locks in its folder `rooms/`, since
these names are too generic for the top level (`demopsd_dist/util/rooms.py` imports them from there). The extras `cpu`,
`gpu`, `gym` and `bitsandbytes` pin the tested sets of `requirements/`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ROOMS = ("workers", "launch", "configs", "requirements")
CHECKS = "# checks"  # above the packages that only tests and benchmarks need, in requirements/common.in
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "demopsd_dist" / "__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None


class BuildWithRooms(build_py):
    """Build step that copies the rooms into the package; an editable install finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for room in ROOMS:
            for source in sorted((ROOT / room).rglob("*")):
                if source.is_file() and "__pycache__" not in source.parts:
                    target = Path(self.build_lib, "demopsd_dist", "rooms", source.relative_to(ROOT))
                    self.mkpath(str(target.parent))
                    self.copy_file(str(source), str(target))


def locked(name: str) -> list[str]:
    """Pins of `requirements/NAME.lock`, without the packages that only tests and benchmarks need by themselves."""
    wanted = (ROOT / "requirements" / "common.in").read_text(encoding="utf-8")
    for_checks = set(wanted.partition(CHECKS)[2].split())
    pins = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    return [pin for pin in pins if re.split(r"[\[=;@ ]", pin)[0] not in for_checks]


setup(
    name="demopsd-dist",
    version=VERSION[1],
    description="Distributed training of reasoning LLMs with DemoPSD (arXiv 2607.02502)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The demopsd-dist maintainers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "distillation",
        "reinforcement learning",
        "reasoning",
        "large language models",
        "Ray",
        "vLLM",
        "DeepSpeed",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2607.02502"},
    python_requires=">=3.11,<3.12",
    cmdclass={"build_py": BuildWithRooms},
    packages=find_packages(include=["demopsd_dist", "demopsd_dist.*"]),
    entry_points={"console_scripts": ["demopsd = demopsd_dist.__main__:main"]},
    package_data={
        "demopsd_dist": ["py.typed"],
        "demopsd_dist.minisci": ["model/*"],
        "demopsd_dist.report": ["assets/*"],
    },
    install_requires=[
        "accelerate",
        "numpy",
        "omegaconf>=2.4",
        "psutil",
        "pyarrow",
        "pyyaml",
        "safetensors",
        "tokenizers",
        "torch>=2.13",
        "transformers>=5.16",
        "rich",
        "shtab==1.13.0",
        "xxhash",
    ],
    extras_require={
        "cpu": locked("cpu"),
        "gpu": locked("gpu"),
        "gym": locked("gym"),
        "bitsandbytes": locked("bitsandbytes"),
        "math": ["math-verify==0.9.0"],
        "tensorboard": ["tensorboard"],
        "wandb": ["wandb"],
    },
)
