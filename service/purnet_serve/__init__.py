"""PurNet Serve: PurNet over HTTP, batched, within bounds of memory and time, and measured."""
