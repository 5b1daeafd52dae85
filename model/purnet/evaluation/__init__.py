"""Scoring saliency maps by the conventions of the field."""
