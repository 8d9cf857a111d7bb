#!/usr/bin/env bash
# The container's entry point, run by tini; and the one home of A1111's command line.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: start.sh           check the settings, start A1111 in the background, become the worker
       start.sh webui     become A1111 (also how the worker restarts it)

The settings are A1111_* variables, see docs/configuration.md. Where things are:
  WORKER_DIR         this project                           (the folder of this file)
  WORKER_PYTHON      its interpreter                        (/opt/worker-venv/bin/python)
  WORKER_CACHE_DIR   caches of both, on the container's disk (/var/cache/a1111-worker)
  WEBUI_DIR          A1111                                  (/opt/stable-diffusion-webui)
  WEBUI_PYTHON       its interpreter                        (/opt/webui-venv/bin/python)
  WEBUI_DATA_DIR     its config.json and hash cache         (WEBUI_DIR)
  WEBUI_MALLOC       tcmalloc, used if the file exists      (Debian's, x86-64)
USAGE
}

SELF=$(realpath "${BASH_SOURCE[0]}")
WORKER_DIR=${WORKER_DIR:-${SELF%/*}}
WORKER_PYTHON=${WORKER_PYTHON:-/opt/worker-venv/bin/python}
WORKER_CACHE_DIR=${WORKER_CACHE_DIR:-/var/cache/a1111-worker}
WEBUI_DIR=${WEBUI_DIR:-/opt/stable-diffusion-webui}
WEBUI_PYTHON=${WEBUI_PYTHON:-/opt/webui-venv/bin/python}
WEBUI_DATA_DIR=${WEBUI_DATA_DIR:-$WEBUI_DIR}
WEBUI_MALLOC=${WEBUI_MALLOC-/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4}

webui() {
    local links=${A1111_WEBUI_LINKS:-/tmp/a1111-models} flags controlnet=()
    # Split at white space on purpose: it is a command line. `read` says 1 at the end of the text.
    read -r -d '' -a flags <<<"${A1111_WEBUI_FLAGS:-}" || true
    # A1111 ends with status 2 at a flag of an extension that it does not have.
    if [[ -d $WEBUI_DATA_DIR/extensions/sd-webui-controlnet ]]; then
        controlnet=(--controlnet-dir "$links/ControlNet")
    fi
    # A1111's own webui.sh does so too: glibc's malloc keeps the memory of replaced checkpoints.
    # More so with the worker's settings, which a restart inherits.
    unset MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_
    if [[ -e $WEBUI_MALLOC ]]; then
        export LD_PRELOAD=$WEBUI_MALLOC${LD_PRELOAD:+:$LD_PRELOAD}
    fi
    cd "$WEBUI_DIR"
    # The address is last: with --nowebui A1111 would listen on every interface, and a later flag wins.
    exec "$WEBUI_PYTHON" -u launch.py --skip-prepare-environment --nowebui --api \
        --skip-load-model-at-start --no-download-sd-model --data-dir "$WEBUI_DATA_DIR" \
        --ckpt-dir "$links/Stable-diffusion" --lora-dir "$links/Lora" --vae-dir "$links/VAE" \
        --embeddings-dir "$links/embeddings" --hypernetwork-dir "$links/hypernetworks" \
        --esrgan-models-path "$links/ESRGAN" "${controlnet[@]}" "${flags[@]}" \
        --server-name 127.0.0.1 --port "${A1111_WEBUI_PORT:-3000}"
}

worker() {
    local log
    # On the network volume these would be slow, and shared with every other worker.
    export XDG_CACHE_HOME=$WORKER_CACHE_DIR HF_HOME=$WORKER_CACHE_DIR/huggingface
    export TORCH_HOME=$WORKER_CACHE_DIR/torch MPLCONFIGDIR=$WORKER_CACHE_DIR/matplotlib
    unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_XET_CACHE TRANSFORMERS_CACHE
    # The SDK, too, leaves its files where it runs.
    cd "$WORKER_DIR"
    "$WORKER_PYTHON" -m worker preflight --webui-dir "$WEBUI_DIR" --data-dir "$WEBUI_DATA_DIR"
    # `exec` keeps our process id, so that A1111 is the worker's own child: its end is seen at once,
    # with the exit code, and it does not outlive the worker.
    exec {log}< <(exec setpriv --pdeathsig KILL "$SELF" webui </dev/null 2>&1)
    # Keep what a large answer took, up to 128 MiB, for the next one: getting it from the kernel again
    # and again is most of the worker's own time with four pictures of 1024x1024 (bench-overhead).
    export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=134217728
    exec "$WORKER_PYTHON" -u "$WORKER_DIR/rp_handler.py" --webui-pid "$!" --webui-log "$log"
}

case ${1-worker}:$# in
    worker:0) worker ;;
    webui:1) webui ;;
    -h:1 | --help:1) usage ;;
    *)
        usage >&2
        exit 64 # EX_USAGE of sysexits.h
        ;;
esac
