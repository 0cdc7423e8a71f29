"""Reading a store back: arrays for Dask, and what is computed from them."""
