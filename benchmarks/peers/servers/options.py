"""What the benchmark tells a peer through its environment."""

import os

PROCESSORS = len(os.sched_getaffinity(0))
"""Those the server may use."""
PORT = int(os.environ.get("PEER_PORT", "8000"))
MAX_BATCH = int(os.environ.get("PEER_MAX_BATCH", "8"))
"""Most images of a batch; 1 turns batching off."""
BATCH_WAIT_S = 0.005 if MAX_BATCH > 1 else 0.0
"""How long the first image of a batch waits for others."""

_deadline_s = os.environ.get("PEER_DEADLINE_S")
_max_waiting = os.environ.get("PEER_MAX_WAITING")

DEADLINE_S = None if _deadline_s is None else float(_deadline_s)
"""Seconds after which nobody wants the answer; None unless the run is tuned for a deadline."""
MAX_WAITING = None if _max_waiting is None else int(_max_waiting)
"""Requests that can be answered within the deadline; None as above."""
