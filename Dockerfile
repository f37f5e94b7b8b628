# Not built or run yet: neither Docker nor a GPU was at hand. tests/test_release.py checks the files and extras it names.
# One NVIDIA GPU: training, and sampling with vLLM in an environment of its own (vLLM fixes versions of torch).
#
#   docker build --tag selfcontrast .
#   docker run --rm --gpus all --ipc host --volume "$PWD/runs:/runs" selfcontrast \
#     train model=hf model.path=NAME generator=vllm generator.backend.python=/srv/vllm/bin/python hardware=gpu
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04 AS build

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/*

# The versions of vLLM's own environment come first: they change least.
COPY pyproject.toml README.md LICENSE /src/
RUN python3 -m venv /srv/vllm \
    && /srv/vllm/bin/python -m pip install --no-cache-dir "$(python3 -c 'import tomllib; print(tomllib.load(open("/src/pyproject.toml", "rb"))["project"]["optional-dependencies"]["vllm"][0])')"

COPY conf /src/conf
COPY evaluation /src/evaluation
COPY src /src/src
RUN python3 -m venv /srv/selfcontrast \
    && /srv/selfcontrast/bin/python -m pip install --no-cache-dir "/src[peft,8bit]"

FROM nvidia/cuda:12.9.1-devel-ubuntu24.04

# gcc and the CUDA toolkit compile Triton's kernels at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-dev gcc \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 selfcontrast \
    && mkdir /runs \
    && chown selfcontrast /runs
COPY --from=build /srv/vllm /srv/vllm
COPY --from=build /srv/selfcontrast /srv/selfcontrast

ENV PATH=/srv/selfcontrast/bin:$PATH \
    HF_HOME=/runs/huggingface \
    SELFCONTRAST_STORE=/runs/store
USER selfcontrast
WORKDIR /runs
ENTRYPOINT ["selfcontrast"]
CMD ["--help"]
