"""Where predictions come from: one seam, several ways to run."""
