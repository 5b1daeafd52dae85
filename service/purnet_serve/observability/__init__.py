"""Metrics, labels and logs."""
