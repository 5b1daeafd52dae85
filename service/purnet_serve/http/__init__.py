"""The HTTP side: admission, uploads, answers, probes, and the server's life."""
