"""The trainer on a forget and a retain set: its loss, references, stopping rule and record on the disk."""
