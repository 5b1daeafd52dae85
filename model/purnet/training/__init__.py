"""Training PurNet: data, superpixels, losses, stages, trainer."""
