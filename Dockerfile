# syntax=docker/dockerfile:1.7
#
# A1111 and the worker in one image, each in a virtual environment of its own: A1111 pins pydantic 1,
# fastapi 0.94 and Pillow 9. torch's wheels bring CUDA 12.1 along, so the base needs none.

# To hold a base to its bytes: --build-arg WORKER_BASE=docker.io/library/python@sha256:…
ARG WEBUI_BASE=docker.io/library/python:3.10.18-slim-bookworm
ARG WORKER_BASE=docker.io/library/python:3.11.13-slim-bookworm


FROM scratch AS webui-source
# A1111 v1.10.1, and what its launcher would clone at start.
# Source: A1111 1.10.1, modules/launch_utils.py, prepare_environment.
ADD https://github.com/AUTOMATIC1111/stable-diffusion-webui.git#82a973c04367123ae98bd9abdf80d9eda9b910e2 /
ADD https://github.com/AUTOMATIC1111/stable-diffusion-webui-assets.git#6f7db241d2f8ba7457bac5ca9753331f0c266917 /repositories/stable-diffusion-webui-assets
# The launcher's own address is gone: A1111 issue 17204.
ADD https://github.com/w-e-w/stablediffusion.git#cf1d67a6fd5ea1aa600c4df58e5b47da45f6bdbf /repositories/stable-diffusion-stability-ai
ADD https://github.com/Stability-AI/generative-models.git#45c443b316737a4ab6e40413d7794a7f5657c19f /repositories/generative-models
ADD https://github.com/crowsonkb/k-diffusion.git#ab527a9a6d347f364e3d185ba6d714e22d80cb3c /repositories/k-diffusion
ADD https://github.com/salesforce/BLIP.git#48211a1594f1321b00f14c9f7a5b4813144b2fb9 /repositories/BLIP


FROM ${WEBUI_BASE} AS webui
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --root-user-action=ignore uv==0.13.8
# A1111 pins what it imports, not what that imports: the date does. Two pins of its own are changed:
# safetensors before 0.4.4 reads v-prediction models wrongly without mmap (A1111 issue 16650), and
# uvicorn decides what SIGTERM does to a running job.
ARG WEBUI_PACKAGES_BEFORE=2024-12-01
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=webui-source,target=/source \
    printf '%s\n' safetensors==0.4.5 uvicorn==0.32.1 > /tmp/overrides.txt \
    && uv venv --python /usr/local/bin/python3.10 /opt/webui-venv \
    && uv pip install --python /opt/webui-venv/bin/python \
        --exclude-newer "$WEBUI_PACKAGES_BEFORE" --override /tmp/overrides.txt \
        --requirement /source/requirements_versions.txt \
        torch==2.1.2 torchvision==0.16.2 wheel==0.45.1
# CLIP's setup.py imports pkg_resources, which setuptools has until 81 and an isolated build does not
# (openai/CLIP issue 532). A1111's requirements have just put setuptools 69.5.1 beside it.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/webui-venv/bin/python \
        --exclude-newer "$WEBUI_PACKAGES_BEFORE" --no-build-isolation \
        https://github.com/openai/CLIP/archive/d50d76daa670286dd6cacf3bcd80b5e4823fc8e1.zip \
        'setuptools<81'
COPY --from=webui-source / /opt/stable-diffusion-webui
RUN python3.10 -m compileall -q /opt/stable-diffusion-webui


FROM ${WORKER_BASE} AS worker
COPY requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3.11 -m venv /opt/worker-venv \
    && /opt/worker-venv/bin/pip install --disable-pip-version-check --require-hashes \
        --requirement /tmp/requirements.txt


FROM ${WORKER_BASE}
LABEL org.opencontainers.image.title="a1111-worker" \
      org.opencontainers.image.description="RunPod serverless worker around a headless AUTOMATIC1111 WebUI" \
      org.opencontainers.image.licenses="MIT"
# Debian keeps only the newest version of a package, so versions cannot be pinned; the base's date does.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        libgl1 \
        libglib2.0-0 \
        libtcmalloc-minimal4 \
        tini \
        util-linux

COPY --from=webui /usr/local/bin/python3.10 /usr/local/bin/
COPY --from=webui /usr/local/lib/libpython3.10.so.1.0 /usr/local/lib/
COPY --from=webui /usr/local/lib/python3.10 /usr/local/lib/python3.10
RUN ldconfig
COPY --from=webui /opt/webui-venv /opt/webui-venv
COPY --from=webui /opt/stable-diffusion-webui /opt/stable-diffusion-webui
COPY --from=worker /opt/worker-venv /opt/worker-venv

# The container's own disk: the network volume is mounted at /runpod-volume.
WORKDIR /app
COPY LICENSE rp_handler.py rp_sdk.py /app/
COPY --chmod=755 start.sh /app/
COPY schemas /app/schemas
COPY model_cache /app/model_cache
COPY worker /app/worker

# A1111 imports GitPython, which refuses to be imported where there is no git unless told to be quiet.
ENV GIT_PYTHON_REFRESH=quiet \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all
# An image whose parts cannot be imported should not be built.
RUN /opt/webui-venv/bin/python -c 'import clip, cv2, git, gradio, open_clip, safetensors, torchvision' \
    && /opt/worker-venv/bin/python -m compileall -q /app \
    && /opt/worker-venv/bin/python -c 'import rp_handler'

ENTRYPOINT ["tini", "--", "/app/start.sh"]
