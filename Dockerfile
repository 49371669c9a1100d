# docker build -t fewstep .
# docker run --rm -v "$PWD/results:/work/results" fewstep snakemake --cores all         the run digits, to its report
# docker run --rm -v "$PWD:/data" -w /data fewstep fewstep doctor my-pipeline --steps 4  any command on files of yours
# A CUDA build of torch: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, and docker run --gpus all.
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/fewstep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# every version is that of constraints.txt, with which the tests pass
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt '.[pipeline,diffusers]'

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
COPY zoo /opt/fewstep/zoo
WORKDIR /work
COPY Snakefile params.yaml dvc.yaml ./
COPY workflow workflow
COPY profiles profiles
ENV PATH=/opt/venv/bin:$PATH \
    FEWSTEP_ZOO=/opt/fewstep/zoo \
    HOME=/tmp \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1 \
    DVC_NO_ANALYTICS=1
CMD ["fewstep", "--help"]
