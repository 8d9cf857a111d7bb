"""The world outside the worker, on loopback: three servers that stand in for what costs money.

`python -m simulator webui` answers as AUTOMATIC1111's API does, `hub` as the hosts that models come
from, `queue` as RunPod's job queue, from which the real SDK loop takes its jobs.
`python -m simulator models DIR` lays out a folder of small model files to begin with.

Nothing here imports the worker's code and the worker's code imports nothing from here: what the two
have in common is the wire, so a wrong idea of it cannot hide on both sides.
"""
