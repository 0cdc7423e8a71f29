"""What a user runs: the command line, executors, the ledger of a run."""
