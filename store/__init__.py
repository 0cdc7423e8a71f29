"""The store: its format, its protocol, and how it is read. Needs neither torch nor ray nor dask."""
