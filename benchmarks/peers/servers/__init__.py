"""One service for each framework: `options`, `codec` and `network` are the same for all."""
