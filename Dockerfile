# Image for GPU nodes, as launch/kuberay.yaml names it: docker build -t demopsd:latest .
#
# The checkout is at /workspace with its environment in .venv. CUDA comes with the locked Python packages; the host needs
# only the NVIDIA driver and its container toolkit. An index of your own for pip: --build-arg PIP_INDEX_URL=...
FROM python:3.11-bookworm

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV RAY_USAGE_STATS_ENABLED=0 \
    PYTHONUNBUFFERED=1

# Debian removes old versions from its mirrors, so that a pinned one would soon fail to install.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git iproute2 make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace

# The environment first: a change of the code alone does not install it again.
COPY Makefile setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY requirements requirements
COPY demopsd_dist demopsd_dist
COPY workers workers
COPY launch launch
RUN make setup GPU=1 PYTHON=python3.11

COPY . .
ENV PATH=/workspace/.venv/bin:$PATH
CMD ["demopsd"]
