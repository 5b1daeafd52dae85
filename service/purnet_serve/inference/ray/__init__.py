"""Predictions by model replicas on a Ray cluster. Nothing but the command line imports this."""
