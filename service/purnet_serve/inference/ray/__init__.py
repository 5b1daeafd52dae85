"""The model tier on a Ray cluster: `RayBackend` at the server, `ModelReplica` on the far side."""

import os

# Before Ray is imported: without it, a call of Ray's after the end would start a Ray of its own.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
