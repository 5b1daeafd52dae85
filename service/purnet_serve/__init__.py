"""PurNet Serve: the network of `model` behind an HTTP door, batched, bounded and measured."""
