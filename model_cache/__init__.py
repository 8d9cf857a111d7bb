"""Model files on the shared volume: fetched once, verified before they are seen, found by name.

Knows nothing of prompts, of A1111's HTTP or of RunPod.
"""
