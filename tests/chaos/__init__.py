"""Faults against real processes and real files, counted; see ``make chaos``."""
