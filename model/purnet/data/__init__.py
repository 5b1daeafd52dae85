"""Photos, masks and superpixels: what training and evaluation both read."""
