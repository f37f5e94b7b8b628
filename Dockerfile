# Train on one NVIDIA GPU, and sample with vLLM in an environment of its own, since vLLM fixes the version of torch.
#
#   docker build --tag selfcontrast .
#   sudo install --directory --owner 10001 runs      # the container's user writes to it
#   docker run --rm --gpus all --ipc host --volume "$PWD/runs:/runs" selfcontrast \
#     train model=hf model.path=NAME generator=vllm generator.backend.python=/srv/vllm/bin/python hardware=gpu
#
# The image was built on 2026-11-28 with Ubuntu 24.04 without CUDA instead of NVIDIA's base image: no registry was at hand.
# These ran in it on a CPU: --help, plan, train +debug=tiny, the import of vLLM, and FlashInfer's compilation of one kernel
# for Hopper, with nvcc 13.0 mounted and a stand-in for libcuda. Nothing ran on a GPU, and vLLM sampled nothing.
# Later the user's home was moved to /runs. Then all RUN steps were built again, but not the last two COPY steps.

# FlashInfer compiles with the image's nvcc, so the image has the CUDA version of PyPI's torch (requirements/lock.txt).
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/*

# vLLM's environment is built first, because its versions change least.
COPY pyproject.toml /src/
RUN python3 -m venv /srv/vllm \
    && /srv/vllm/bin/python -m pip install --no-cache-dir "$(python3 -c 'import tomllib; print(tomllib.load(open("/src/pyproject.toml", "rb"))["project"]["optional-dependencies"]["vllm"][0])')"

COPY README.md LICENSE /src/
COPY conf /src/conf
COPY evaluation /src/evaluation
COPY src /src/src
RUN python3 -m venv /srv/selfcontrast \
    && /srv/selfcontrast/bin/python -m pip install --no-cache-dir "/src[peft,8bit]"

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

# Triton (with gcc) and FlashInfer in vLLM (with nvcc and g++) compile kernels at run time.
# They are cached in the user's home. It is the volume, so a later run finds them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --home-dir /runs --uid 10001 selfcontrast \
    && mkdir /runs \
    && chown selfcontrast: /runs
COPY --from=build /srv/vllm /srv/vllm
COPY --from=build /srv/selfcontrast /srv/selfcontrast

ENV PATH=/srv/selfcontrast/bin:$PATH \
    HF_HOME=/runs/huggingface \
    SELFCONTRAST_STORE=/runs/store
USER selfcontrast
WORKDIR /runs
ENTRYPOINT ["selfcontrast"]
CMD ["--help"]
