"""How a network is run: one file per engine."""
