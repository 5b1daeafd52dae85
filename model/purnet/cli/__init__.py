"""The commands that work on files."""
