"""A run on the disk: whole files, checkpoints, the result, the ledger and the way back."""
