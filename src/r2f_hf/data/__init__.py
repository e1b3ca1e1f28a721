"""Rows, views, formatting and batches."""
