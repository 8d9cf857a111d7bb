"""A client on the real SDK, for test_queue_sdk.py: prints what each call gave it, as JSON."""

import json
import sys

import runpod

endpoint = runpod.Endpoint(sys.argv[1], api_key=sys.argv[3])

answer = endpoint.run_sync({"op": "echo"}, timeout=30)
job = endpoint.run({"op": "echo"})
output = job.output(timeout=30)
streamed = endpoint.run({"op": "stream"})
queued = endpoint.run({"op": "sleep", "seconds": 60, "note": sys.argv[2]})
seen = {
    "run_sync": answer,
    "output": output,
    "status": job.status(),
    "cancel": queued.cancel(),
    "cancelled": queued.status(),
    "stream": list(streamed.stream()),
    "purge": endpoint.purge_queue(),
    "health": endpoint.health(),
}
print(json.dumps(seen))
