#!/usr/bin/env bash
# The container's entry point, run by tini. What Python can decide, `python -m worker` decides.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: start.sh [worker [FLAGS]]   check the settings, start A1111 in the background, become the
                                   worker; FLAGS are the RunPod SDK's own, as in --rp_serve_api
       start.sh webui              become A1111 (also how the worker restarts it)
       start.sh check [--json]     say what is here and what will not work; exit status 1: something,
                                   78: the settings are wrong

The settings are A1111_* variables, see docs/configuration.md. Where things are:
  WORKER_DIR         this project                           (the folder of this file)
  WORKER_PYTHON      its interpreter                        (/opt/worker-venv/bin/python)
  WORKER_CACHE_DIR   caches of both, on the container's disk (/var/cache/a1111-worker)
  WEBUI_DIR          A1111                                  (/opt/stable-diffusion-webui)
  WEBUI_PYTHON       its interpreter                        (/opt/webui-venv/bin/python)
  WEBUI_DATA_DIR     its config.json and hash cache         (WEBUI_DIR; never on the volume)
  WEBUI_HELPERS_DIR  helper weights in the image            (/opt/helpers)
  WEBUI_HF_HOME      its Hugging Face cache, if it exists   (/opt/huggingface)
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
WEBUI_HELPERS_DIR=${WEBUI_HELPERS_DIR:-/opt/helpers}
WEBUI_HF_HOME=${WEBUI_HF_HOME:-/opt/huggingface}
WEBUI_MALLOC=${WEBUI_MALLOC-/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4}

command_file=$WORKER_CACHE_DIR/webui-command
places=(--webui-dir "$WEBUI_DIR" --webui-python "$WEBUI_PYTHON" --data-dir "$WEBUI_DATA_DIR"
    --cache-dir "$WORKER_CACHE_DIR" --helpers-dir "$WEBUI_HELPERS_DIR"
    --hf-home "$WEBUI_HF_HOME")

caches() {
    # On the network volume these would be slow, and shared with every other worker.
    export XDG_CACHE_HOME=$WORKER_CACHE_DIR HF_HOME=$WORKER_CACHE_DIR/huggingface
    export TORCH_HOME=$WORKER_CACHE_DIR/torch MPLCONFIGDIR=$WORKER_CACHE_DIR/matplotlib
    unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_XET_CACHE TRANSFORMERS_CACHE
    unset SD_WEBUI_CACHE_DIR SD_WEBUI_CACHE_FILE
}

preflight() {
    # The SDK, too, leaves its files where it runs.
    cd "$WORKER_DIR"
    "$WORKER_PYTHON" -m worker preflight "${places[@]}" --command-file "$command_file"
}

webui() {
    local command=()
    caches
    # Below the worker it is as it was at the first start: nothing is asked again.
    if [[ -z ${WEBUI_RESTARTS_BY_FILE:-} || ! -e $command_file ]]; then
        preflight >&2
    fi
    mapfile -d '' -t command <"$command_file"
    # The tokenizers that A1111 would fetch in every new container; it looks there before it asks.
    if [[ -d $WEBUI_HF_HOME ]]; then
        export HF_HOME=$WEBUI_HF_HOME
    fi
    # A1111's own webui.sh does so too: glibc's malloc keeps the memory of replaced checkpoints.
    # More so with the worker's settings, which a restart inherits.
    unset MALLOC_ARENA_MAX MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_
    if [[ -e $WEBUI_MALLOC ]]; then
        export LD_PRELOAD=$WEBUI_MALLOC${LD_PRELOAD:+:$LD_PRELOAD}
    fi
    cd "$WEBUI_DIR"
    exec "${command[@]}"
}

worker() {
    local log
    caches
    cd "$WORKER_DIR"
    rm -f "$command_file"
    export WEBUI_RESTARTS_BY_FILE=1
    # A1111's preflight is its child's business, so that nothing of the worker waits for it: what it
    # objects to ends the child with its exit code, and the worker with the same.
    # `exec` keeps our process id, so that A1111 is the worker's own child: its end is seen at once,
    # with the exit code, and it does not outlive the worker. `setsid` keeps the process id, too, as
    # it is called by a process that leads no group; A1111 then leads one of its own, which the worker
    # ends as a whole, and Ctrl-C is for the worker alone.
    exec {log}< <(exec setsid setpriv --pdeathsig KILL "$SELF" webui </dev/null 2>&1)
    # Keep what a large answer took, up to 128 MiB, for the next one: getting it from the kernel again
    # and again is most of the worker's own time with four pictures of 1024x1024 (bench-overhead).
    # One arena, so that what one thread gave back serves the next one, too (bench-output).
    export MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=134217728
    exec "$WORKER_PYTHON" -u "$WORKER_DIR/rp_handler.py" --webui-pid "$!" --webui-log "$log" "$@"
}

check() {
    cd "$WORKER_DIR"
    exec "$WORKER_PYTHON" -m worker check "${places[@]}" "$@"
}

case ${1-worker}:$# in
    worker:*) worker "${@:2}" ;;
    webui:1) webui ;;
    check:1) check ;;
    check:2) check "$2" ;;
    -h:1 | --help:1) usage ;;
    *)
        usage >&2
        exit 64 # EX_USAGE of sysexits.h
        ;;
esac
