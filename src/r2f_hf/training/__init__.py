"""The trainer over a forget and a retain set: its loss, its references, its stopping rule."""
