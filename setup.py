"""The installable library. `workers` and `launch` run from the checkout: their names are too generic to install."""

from setuptools import find_packages, setup

setup(
    name="demopsd-dist",
    version="0.1.0",
    description="Distributed training of reasoning LLMs with DemoPSD (arXiv 2607.02502)",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["demopsd_dist", "demopsd_dist.*"]),
    entry_points={"console_scripts": ["demopsd = demopsd_dist.__main__:main"]},
    package_data={"demopsd_dist.minisci": ["model/*"], "demopsd_dist.report": ["assets/*"]},
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
