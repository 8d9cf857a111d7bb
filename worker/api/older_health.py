"""How the worker is, under the keys that callers of DiffusionAPI read.

What it measured and nobody can know here is `null`: a network volume shows the whole cluster's disk,
and pictures lie in no folder. `status` keeps our own words.
Source: DiffusionAPI's README, "GET /health".
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from model_cache.volume import layout
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from worker.machine import hardware, versions


def keys(report: Mapping[str, Any], settings: CacheSettings) -> dict[str, Any]:
    """Return what is to be added to `Health.report`; sizes in GB (10^9 bytes)."""
    store = report["store"]
    budget_gb = store["budget_gb"]
    return {
        "timestamp": time.time(),
        "version": versions.WORKER,
        "system": {
            "cpu_count": len(os.sched_getaffinity(0)),
            **_memory(report["memory"]),
            "disk_usage_percent": budget_gb and round(100 * store["size_gb"] / budget_gb, 1),
        },
        "gpu": _gpu(report["memory"]),
        "models": _held(Kind.CHECKPOINT, store, settings),
        "loras": _held(Kind.LORA, store, settings),
        "queue": {"active_jobs": len(report["jobs"]), "directory": None},
        "outputs": {"available": False, "free_space_gb": None, "directory": None},
    }


def _memory(asked: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return the memory by what A1111 says of it; of one that does not answer the size alone."""
    ram = (asked or {}).get("ram", {})
    free, total = ram.get("free"), hardware.memory_bytes()
    if free is None or not ram.get("total"):
        return {
            "memory_total_gb": _gb(total),
            "memory_available_gb": None,
            "memory_percent": None,
        }
    return {
        "memory_total_gb": _gb(ram["total"]),
        "memory_available_gb": _gb(free),
        "memory_percent": round(100 * (1 - free / ram["total"]), 1),
    }


def _gpu(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    found = hardware.gpus()
    cuda = (asked or {}).get("cuda", {})
    held = {name: cuda.get(name, {}).get("current") for name in ("allocated", "reserved")}
    return {
        "cuda_available": "system" in cuda,
        "gpu_count": len(found),
        "device_name": found[0].name if found else "none",
        **{f"memory_{name}_gb": None if size is None else _gb(size) for name, size in held.items()},
    }


def _held(kind: Kind, store: Mapping[str, Any], settings: CacheSettings) -> dict[str, Any]:
    folder = settings.models / layout.FOLDERS[kind]
    return {"count": store["models"].get(str(kind), 0), "directory": str(folder)}


def _gb(size_bytes: float) -> float:
    return round(size_bytes / 1e9, 2)
