"""The documentation's site: links, notebooks, docstrings, pictures. It is not in the wheel."""
