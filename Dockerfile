# actlas on a cluster: the code comes in the image. Every node needs the same Ray and Python.
#   docker build -t actlas .
#   docker run --gpus all --shm-size 2g -v /data:/data actlas extract /data/run.zarr --model … --corpus …
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1 \
    PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HOME=/data/huggingface \
    PATH=/opt/actlas/bin:$PATH

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/actlas

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
    && actlas --help > /dev/null

RUN useradd --create-home --uid 10001 actlas && mkdir -p /data && chown actlas /data
USER 10001
WORKDIR /data
VOLUME /data

ENTRYPOINT ["tini", "--", "actlas"]
CMD ["--help"]
