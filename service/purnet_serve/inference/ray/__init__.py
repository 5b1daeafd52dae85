"""The model tier on a Ray cluster: `RayBackend` in the servers, `ModelReplica` with the model."""

import os

# Ray reads these when it is imported, and all that it starts inherits them.
for _name, _value in {
    # A call of Ray's after the end would otherwise start a Ray of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # It would print the stack at SIGTERM, on which this process drains.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Nobody is told of it.
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
