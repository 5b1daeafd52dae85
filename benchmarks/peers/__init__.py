"""The service beside other ways to serve the same network: `python -m benchmarks.peers`.

    python -m benchmarks.peers install                       # once: an environment for each peer
    python -m benchmarks.peers run --photos DIR --smoke      # each starts, passes the gate, answers
    python -m benchmarks.peers run --photos DIR              # measures, hours; `run --help`
    python -m benchmarks.peers report RESULTS.json ...       # writes docs/benchmark.md

A *peer* is a server under test. Most run our network and our codec behind another serving
framework, so that only the serving differs; `baseline` is an older commit of ours, and rembg's own
server has a network of its own.

| file | what |
|---|---|
| `peers.py` | the peers as data: command, settings, limits |
| `environments.py` | their virtual environments and versions |
| `servers/` | the service we wrote for each framework |
| `photos.py`, `gate.py` | what is sent; equal masks before anything is timed |
| `processes.py`, `server.py` | a running peer: start, processor time, memory, stop |
| `arrivals.py`, `generator.py` | when requests are sent; the process that sends them |
| `plan.py`, `measure.py` | what is to be measured; the order of steps and rounds |
| `results.py` | the JSON file, and what is counted of a step |
| `report.py`, `tables.py`, `plots.py` | the page |
"""
