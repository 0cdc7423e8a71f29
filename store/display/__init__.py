"""Display: HTML for notebooks and plain text for terminals, made from strings and numbers only.

Imports no other room. Start reading in ``html.py``.
"""
