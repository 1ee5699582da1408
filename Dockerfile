# Unified Latents with its bundled weights, ready for use without a network:
#
#   docker build -t ul-tokenizer .                            # for CPUs
#   docker build -t ul-tokenizer --build-arg DEVICE=cuda .    # for NVIDIA GPUs; run it with --gpus all
#   docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" ul-tokenizer reconstruct photo.jpg -o out
#
# EXTRAS adds extras of the package, such as the demo for the browser:
#
#   docker build -t ul-demo --build-arg EXTRAS=[demo] . && docker run --rm -p 7860:7860 ul-demo demo --host 0.0.0.0
#
# The layers that change least come first: Python, torch, the other dependencies, the package with its weights.
ARG DEVICE=cpu
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY constraints.txt ./

FROM base AS wheel
WORKDIR /build
COPY LICENSE MANIFEST.in README.md pyproject.toml setup.py ./
COPY ul_tokenizer ul_tokenizer
# The dependencies are a file of their own: their layer stays when only the package changes.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir dist . && \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt

FROM base AS torch-cpu
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"

FROM base AS torch-cuda
RUN pip install --no-cache-dir -c constraints.txt torch

# hadolint ignore=DL3006
FROM torch-${DEVICE}
WORKDIR /build
COPY --from=wheel /build/requirements.txt ./
RUN pip install --no-cache-dir -c constraints.txt -r requirements.txt
ARG EXTRAS=""
RUN --mount=type=bind,from=wheel,source=/build/dist,target=/build/dist \
    for wheel in dist/*.whl; do pip install --no-cache-dir -c constraints.txt "$wheel$EXTRAS"; done
# The models are inside, so nothing is looked up; `-e HF_HUB_OFFLINE=0` allows downloads. Any user id works (-u): caches
# go to /tmp, and torch needs a user's name.
ENV HF_HUB_OFFLINE=1 HOME=/tmp USER=user
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["ul-tokenizer"]
CMD ["--help"]
