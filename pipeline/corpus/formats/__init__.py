"""Readers of one file format each: records one at a time, in bounded memory, none lost silently.

May import: the store's errors alone. A record that cannot be read is yielded as ``Unreadable`` and
counted by the caller; a file whose structure is broken is an error that names the line or the page.
Start with ``base.py`` for the words and the limits, then ``csv_table.py``.
"""
