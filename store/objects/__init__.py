"""A store's bytes as create-only objects, in a local folder or in a bucket.

Imports ``errors`` only; obstore is imported when a bucket is opened. Start reading in ``base.py``.
"""
