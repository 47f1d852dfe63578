"""The installable library. `workers` and `launch` run from the checkout: their names are too generic to install."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "demopsd_dist" / "__init__.py").read_text(), re.MULTILINE)
assert VERSION is not None

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
    packages=find_packages(include=["demopsd_dist", "demopsd_dist.*"]),
    entry_points={"console_scripts": ["demopsd = demopsd_dist.__main__:main"]},
    package_data={
        "demopsd_dist": ["py.typed"],
        "demopsd_dist.minisci": ["model/*"],
        "demopsd_dist.report": ["assets/*"],
    },
    install_requires=[
        "numpy",
        "omegaconf>=2.4",
        "pyarrow",
        "safetensors",
        "tokenizers",
        "torch>=2.13",
        "transformers>=5.16",
        "rich",
        "shtab==1.13.0",
        "xxhash",
    ],
    extras_require={"math": ["math-verify==0.9.0"], "tensorboard": ["tensorboard"], "wandb": ["wandb"]},
)
