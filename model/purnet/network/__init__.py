"""The network: backbones, pyramids, variants, and checkpoints of them."""
