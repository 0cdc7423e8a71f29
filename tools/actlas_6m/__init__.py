"""How the embedded model actlas-6m was trained: outside the wheel."""
