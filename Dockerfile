# syntax=docker/dockerfile:1.7
#
# A1111 (or Forge) and the worker in one image, each in a virtual environment of its own: A1111 pins
# pydantic 1, fastapi 0.94 and Pillow 9. torch's wheels bring CUDA along, so the base needs none.
#
#   --target slim    no checkpoint: models come from the network volume, or are fetched
#   --target baked   the same with one checkpoint in it; the last, so what `docker build .` makes
#
# docker-bake.hcl names the combinations, docs/deploying.md tells what the arguments are for.

# hadolint takes the stages that an argument chooses for images without a tag; the two bases have theirs.
# hadolint global ignore=DL3006

# To hold a base to its bytes: --build-arg WORKER_BASE=docker.io/library/python@sha256:…
ARG WEBUI_BASE=docker.io/library/python:3.10.18-slim-bookworm
ARG WORKER_BASE=docker.io/library/python:3.11.13-slim-bookworm
# Each chooses between the stages that are called so: source-a1111 or source-forge, reactor-off or …
ARG WEBUI_KIND=a1111
ARG CONTROLNET=off
ARG ADETAILER=off
ARG REACTOR=off
ARG HELPERS=on


FROM scratch AS source-a1111
# A1111 v1.10.1, and what its launcher would clone at start.
# Source: A1111 1.10.1, modules/launch_utils.py, prepare_environment.
ADD https://github.com/AUTOMATIC1111/stable-diffusion-webui.git#82a973c04367123ae98bd9abdf80d9eda9b910e2 /
ADD https://github.com/AUTOMATIC1111/stable-diffusion-webui-assets.git#6f7db241d2f8ba7457bac5ca9753331f0c266917 /repositories/stable-diffusion-webui-assets
# The launcher's own address is gone: A1111 issue 17204.
ADD https://github.com/w-e-w/stablediffusion.git#cf1d67a6fd5ea1aa600c4df58e5b47da45f6bdbf /repositories/stable-diffusion-stability-ai
ADD https://github.com/Stability-AI/generative-models.git#45c443b316737a4ab6e40413d7794a7f5657c19f /repositories/generative-models
ADD https://github.com/crowsonkb/k-diffusion.git#ab527a9a6d347f364e3d185ba6d714e22d80cb3c /repositories/k-diffusion
ADD https://github.com/salesforce/BLIP.git#48211a1594f1321b00f14c9f7a5b4813144b2fb9 /repositories/BLIP


FROM scratch AS source-forge
# Source: Forge, modules/launch_utils.py, prepare_environment.
ADD https://github.com/lllyasviel/stable-diffusion-webui-forge.git#dfdcbab685e57677014f05a3309b48cc87383167 /
ADD https://github.com/AUTOMATIC1111/stable-diffusion-webui-assets.git#6f7db241d2f8ba7457bac5ca9753331f0c266917 /repositories/stable-diffusion-webui-assets
ADD https://github.com/lllyasviel/huggingface_guess.git#84826248b49bb7ca754c73293299c4d4e23a548d /repositories/huggingface_guess
ADD https://github.com/salesforce/BLIP.git#48211a1594f1321b00f14c9f7a5b4813144b2fb9 /repositories/BLIP


# A stage per switch: one that is off is not fetched. Forge has a ControlNet of its own.
FROM source-${WEBUI_KIND} AS controlnet-off
FROM controlnet-off AS controlnet-on
ADD https://github.com/Mikubill/sd-webui-controlnet.git#56cec5b2958edf3b1807b7e7b2b1b5186dbd2f81 /extensions/sd-webui-controlnet

FROM controlnet-${CONTROLNET} AS adetailer-off
FROM adetailer-off AS adetailer-on
ADD https://github.com/Bing-su/adetailer.git#36189cbea735b85fd01e98ac42002b8ce6f0e41d /extensions/adetailer

FROM adetailer-${ADETAILER} AS reactor-off
FROM reactor-off AS reactor-on
ADD https://github.com/Gourieff/sd-webui-reactor.git#2c6a6e63527dc0e8ba9e620a324cb817306cea4b /extensions/sd-webui-reactor

FROM reactor-${REACTOR} AS source


FROM ${WEBUI_BASE} AS webui
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never
# insightface, which ReActor imports, comes as source alone.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        g++
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --disable-pip-version-check --root-user-action=ignore uv==0.13.8
# CUDA 12.1, as A1111 has it. For CUDA 12.8 (Blackwell) see docker-bake.hcl: torch's wheels on the
# index are built for 12.8 from 2.8.0 on. XFORMERS may be empty.
ARG TORCH=2.1.2
ARG TORCHVISION=0.16.2
ARG XFORMERS=0.0.23.post1
# A1111 pins what it imports, not what that imports: the date does.
ARG WEBUI_PACKAGES_BEFORE=2024-12-01
# Installed here is what the launcher would install at start: its own requirements, and those of each
# extension with an install.py. ADetailer's names them in Python; onnxruntime is what ReActor's adds,
# here for the CPU: the GPU's wheel needs cuDNN 9, and torch 2.1 brings 8.
# Pins of A1111's own that are changed: safetensors before 0.4.4 reads v-prediction models wrongly
# without mmap (A1111 issue 16650); uvicorn decides what SIGTERM does to a running job; and protobuf
# 3.20 is too old for ADetailer's mediapipe and ReActor's onnx.
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=source,target=/source \
    set -e; \
    cp /source/requirements_versions.txt /tmp/requirements.txt; \
    printf '%s\n' safetensors==0.4.5 uvicorn==0.32.1 > /tmp/overrides.txt; \
    for installer in /source/extensions*/*/install.py; do \
        listed="${installer%install.py}requirements.txt"; \
        if [ -f "$listed" ]; then { echo; cat "$listed"; } >> /tmp/requirements.txt; fi; \
    done; \
    if [ -d /source/extensions/adetailer ]; then \
        printf '\n%s' 'ultralytics>=8.2' 'mediapipe>=0.10.13' 'rich>=13' >> /tmp/requirements.txt; \
        printf '%s\n' protobuf==4.25.5 >> /tmp/overrides.txt; \
    fi; \
    if [ -d /source/extensions/sd-webui-reactor ]; then \
        printf '\n%s' onnxruntime >> /tmp/requirements.txt; \
        printf '%s\n' protobuf==4.25.5 >> /tmp/overrides.txt; \
    fi; \
    uv venv --python /usr/local/bin/python3.10 /opt/webui-venv; \
    uv pip install --python /opt/webui-venv/bin/python \
        --exclude-newer "$WEBUI_PACKAGES_BEFORE" --override /tmp/overrides.txt \
        --requirement /tmp/requirements.txt \
        "torch==$TORCH" "torchvision==$TORCHVISION" ${XFORMERS:+"xformers==$XFORMERS"} wheel==0.45.1
# CLIP's setup.py imports pkg_resources, which setuptools has until 81 and an isolated build does not
# (openai/CLIP issue 532). A1111's requirements have just put setuptools 69.5.1 beside it.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/webui-venv/bin/python \
        --exclude-newer "$WEBUI_PACKAGES_BEFORE" --no-build-isolation \
        https://github.com/openai/CLIP/archive/d50d76daa670286dd6cacf3bcd80b5e4823fc8e1.zip \
        'setuptools<81'
COPY --from=source / /opt/stable-diffusion-webui
# Saves seconds at start. What others wrote may hold a file that no Python can read, and never uses it.
RUN python3.10 -m compileall -q /opt/stable-diffusion-webui || echo 'not every file compiles'


FROM ${WORKER_BASE} AS worker
COPY requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    python3.11 -m venv /opt/worker-venv \
    && /opt/worker-venv/bin/pip install --disable-pip-version-check --require-hashes \
        --requirement /tmp/requirements.txt


FROM ${WORKER_BASE} AS helpers-off
# The tokenizer of every SD 1 and SDXL checkpoint, as a Hugging Face cache: A1111 would fetch it at the
# first load in every new container. Its revision is what the name `main` stands for, without a newline.
ADD --chmod=644 https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/config.json \
    https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/merges.txt \
    https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/special_tokens_map.json \
    https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/tokenizer.json \
    https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/tokenizer_config.json \
    https://huggingface.co/openai/clip-vit-large-patch14/resolve/32bd64288804d66eefd0ccbe215aa642df71cc41/vocab.json \
    /opt/huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/32bd64288804d66eefd0ccbe215aa642df71cc41/
RUN mkdir -p /opt/helpers /opt/huggingface/hub/models--openai--clip-vit-large-patch14/refs \
    && printf '%s' 32bd64288804d66eefd0ccbe215aa642df71cc41 \
        > /opt/huggingface/hub/models--openai--clip-vit-large-patch14/refs/main

FROM helpers-off AS helpers-on
# What A1111 silently does without, under the names by which it looks for them below models/.
# CodeFormer's licence (S-Lab 1.0) allows no commercial use: HELPERS=off leaves them all out.
# Source: A1111 1.10.1, modules/codeformer_model.py, gfpgan_model.py, realesrgan_model.py; facexlib 0.3.0.
ADD --chmod=644 --checksum=sha256:1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7 \
    https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth /opt/helpers/Codeformer/codeformer-v0.1.0.pth
ADD --chmod=644 --checksum=sha256:e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad \
    https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth /opt/helpers/GFPGAN/GFPGANv1.4.pth
ADD --chmod=644 --checksum=sha256:6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d \
    https://github.com/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth /opt/helpers/GFPGAN/detection_Resnet50_Final.pth
ADD --chmod=644 --checksum=sha256:3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2 \
    https://github.com/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth /opt/helpers/GFPGAN/parsing_parsenet.pth
ADD --chmod=644 --checksum=sha256:4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1 \
    https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth /opt/helpers/RealESRGAN/RealESRGAN_x4plus.pth
ADD --chmod=644 --checksum=sha256:f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da \
    https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth /opt/helpers/RealESRGAN/RealESRGAN_x4plus_anime_6B.pth

FROM helpers-${HELPERS} AS helpers


FROM ${WORKER_BASE} AS slim
ARG WEBUI_KIND
ARG TORCH=2.1.2
LABEL org.opencontainers.image.title="a1111-worker" \
      org.opencontainers.image.description="RunPod serverless worker around a headless AUTOMATIC1111 WebUI" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT AND AGPL-3.0-only" \
      a1111-worker.webui-kind="${WEBUI_KIND}" \
      a1111-worker.torch="${TORCH}"
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
COPY --from=helpers /opt/huggingface /opt/huggingface
COPY --from=helpers /opt/helpers /opt/helpers
COPY --from=worker /opt/worker-venv /opt/worker-venv

# The container's own disk: the network volume is mounted at /runpod-volume.
WORKDIR /app
COPY LICENSE rp_*.py /app/
COPY --chmod=755 start.sh /app/
COPY schemas /app/schemas
COPY model_cache /app/model_cache
COPY worker /app/worker

# A1111 imports GitPython, which refuses to be imported where there is no git unless told to be quiet.
ENV GIT_PYTHON_REFRESH=quiet \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_VISIBLE_DEVICES=all \
    WEBUI_KIND=${WEBUI_KIND}
# An image whose parts cannot be imported should not be built.
RUN /opt/webui-venv/bin/python -c 'import clip, cv2, git, gradio, open_clip, safetensors, torchvision' \
    && /opt/worker-venv/bin/python -m compileall -q /app \
    && /opt/worker-venv/bin/python -c 'import rp_handler'

# RunPod asks the worker itself; this is for `docker compose`. A1111 may take A1111_WEBUI_READY_TIMEOUT_S.
HEALTHCHECK --interval=60s --timeout=20s --start-period=300s --retries=3 \
    CMD ["/opt/worker-venv/bin/python", "-m", "worker", "health"]
ENTRYPOINT ["tini", "--", "/app/start.sh"]


FROM worker AS checkpoint
# Any URL or reference of docs/api.md. Without a digest, the safetensors header alone is checked.
ARG CHECKPOINT_URL=https://huggingface.co/XpucT/Deliberate/resolve/main/Deliberate_v6.safetensors
ARG CHECKPOINT_NAME=deliberate_v6
ARG CHECKPOINT_SHA256=
WORKDIR /app
COPY schemas /app/schemas
COPY model_cache /app/model_cache
# The store's own code fetches and checks it; its manifest goes along, so that no worker hashes the file
# again. For a gated one: --secret id=HF_TOKEN,env=HF_TOKEN, or CIVITAI_TOKEN.
RUN --mount=type=secret,id=CIVITAI_TOKEN \
    --mount=type=secret,id=HF_TOKEN \
    set -e; \
    mkdir /volume; \
    for token in CIVITAI_TOKEN HF_TOKEN; do \
        if [ -f "/run/secrets/$token" ]; then export "$token=$(cat "/run/secrets/$token")"; fi; \
    done; \
    /opt/worker-venv/bin/python -m model_cache pull --volume /volume --kind checkpoint \
        --name "$CHECKPOINT_NAME" ${CHECKPOINT_SHA256:+--hash "$CHECKPOINT_SHA256"} "$CHECKPOINT_URL"; \
    test -f "/volume/models/checkpoints/$CHECKPOINT_NAME.safetensors"; \
    mkdir /models; \
    cp -a /volume/models/checkpoints /models/; \
    mkdir /models/.worker; \
    cp -a /volume/models/.worker/manifests /models/.worker/


FROM slim AS baked
ARG CHECKPOINT_NAME=deliberate_v6
COPY --from=checkpoint /models /models
ENV A1111_WEBUI_CHECKPOINT=${CHECKPOINT_NAME}
