# actlas on a cluster: the code comes in the image, the same on every node, so that Ray and Python
# are the same to the patch. No weights, no tokens.
#   docker build -t actlas .
#   docker run --gpus all --shm-size 1g -v /data:/data actlas extract /data/run.zarr --model … --corpus …
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HOME=/data/huggingface \
    PATH=/opt/actlas/bin:$PATH

# wget: older KubeRay probes pods with it. The profile: a login shell (KubeRay before 1.4, and
# ENABLE_LOGIN_SHELL) would not find `ray`, `python` and `actlas` otherwise.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/actlas \
    && echo "export PATH=/opt/actlas/bin:\$PATH" > /etc/profile.d/actlas.sh

WORKDIR /src
COPY constraints.txt ./
# torch first and alone: the largest layer, and the one that changes least.
RUN pip install --constraint constraints.txt torch==2.13.0

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY store store
COPY pipeline pipeline
COPY analysis analysis
COPY jobs jobs
RUN pip install --constraint constraints.txt '.[all]' \
    && actlas --help > /dev/null \
    && bash -lc 'ray --version && actlas --version'

RUN groupadd --gid 10001 actlas \
    && useradd --create-home --uid 10001 --gid 10001 actlas \
    && mkdir -p /data \
    && chown actlas:actlas /data
USER 10001
WORKDIR /data
VOLUME /data

# KubeRay gives pods a command of their own, `/bin/bash -c "ray start …"`, in place of this.
ENTRYPOINT ["tini", "--", "actlas"]
CMD ["--help"]
