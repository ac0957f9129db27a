"""Run as a program: puts entries into an opened cache and says each that has returned.

Arguments: path, mode ("put", "checkpoint" or "invalidate"). Ends only when it is killed.
"""

import sys

from ai_model_optimizations.cache import SmartCache

path, mode = sys.argv[1:]
cache = SmartCache.open(path, ttl=None, fsync_every=50)
i = 0
while True:
    cache.put([1.0, i * 1e-3], f"value {i} " + "x" * 500, query=f"q{i}")
    print(f"put {i}", flush=True)
    if mode == "invalidate" and i % 7 == 3:
        cache.invalidate(tag=None, entry=None, context=None, prefix="", erase=i % 2 == 0)
        print(f"cleared {i}", flush=True)
    if mode == "checkpoint" and i % 5 == 0:
        cache.checkpoint()
    i += 1
