"""How the service grows past one machine: `python -m benchmarks.scaling COMMAND`.

`measure` writes one JSON file, `report` the tables of docs/scaling.md from it.
"""
