"""A run on the disk: files that are whole, checkpoints, the result, the ledger, and how to undo the run."""
