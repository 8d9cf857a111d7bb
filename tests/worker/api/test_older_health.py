from pathlib import Path
from typing import Any

from schemas.settings import CacheSettings
from worker.api import older_health

GB = 10**9
# As A1111 1.10.1 answers GET /sdapi/v1/memory with a GPU (modules/api/api.py, get_memory).
MEMORY = {
    "ram": {"free": 6 * GB, "used": 2 * GB, "total": 8 * GB},
    "cuda": {
        "system": {"free": 20 * GB, "used": 4 * GB, "total": 24 * GB},
        "allocated": {"current": 3 * GB, "peak": 5 * GB},
        "reserved": {"current": 4 * GB, "peak": 6 * GB},
    },
}


def told(memory: Any, *, budget_gb: float | None = 10) -> dict[str, Any]:
    store = {"models": {"checkpoint": 2}, "size_gb": 2.5, "budget_gb": budget_gb}
    report = {"memory": memory, "store": store, "jobs": [{"id": "j"}]}
    return older_health.keys(report, CacheSettings(volume=Path("/volume")))


def test_health_has_every_key_that_a_caller_of_diffusionapi_reads() -> None:
    health = told(MEMORY)

    assert health.keys() == {
        *("timestamp", "version", "system", "gpu", "models", "loras", "queue", "outputs")
    }
    assert {name: value for name, value in health["system"].items() if name != "cpu_count"} == {
        "memory_total_gb": 8.0,
        "memory_available_gb": 6.0,
        "memory_percent": 25.0,
        "disk_usage_percent": 25.0,
    }
    assert health["system"]["cpu_count"] >= 1
    assert health["gpu"]["cuda_available"] is True
    assert health["gpu"]["memory_allocated_gb"] == 3.0
    assert health["gpu"]["memory_reserved_gb"] == 4.0
    assert health["models"] == {"count": 2, "directory": "/volume/models/checkpoints"}
    assert health["loras"] == {"count": 0, "directory": "/volume/models/loras"}
    assert health["queue"]["active_jobs"] == 1
    assert health["outputs"].keys() == {"available", "free_space_gb", "directory"}


def test_what_nobody_can_know_is_null() -> None:
    for memory in (None, {"ram": {"error": "x"}, "cuda": {"error": "unavailable"}}):
        health = told(memory, budget_gb=None)

        assert health["system"]["memory_available_gb"] is None
        assert health["system"]["disk_usage_percent"] is None
        assert health["gpu"]["cuda_available"] is False
        assert health["gpu"]["memory_allocated_gb"] is None
