"""Uploads to pixels and masks to files, within bounds of pixels, memory and threads."""
