"""Our own shard writer and chunk reader: the fast path. Zarr's libraries read the same bytes.

A shard is its inner chunks back to back, then the index (offset and length of each chunk, little
endian uint64, all ones where there is none) and the index's crc32c.
"""

from __future__ import annotations

import os

from actlas.store.shards.chunks import _after_fork

os.register_at_fork(after_in_child=_after_fork)
