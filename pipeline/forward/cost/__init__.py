"""What forward passes cost, known before they run: seconds and bytes.

May import: what ``pipeline.forward`` may, and its other files.
Start at ``memory.py`` for the projection of a worker's memory, at ``speed.py`` for timed passes.
"""
