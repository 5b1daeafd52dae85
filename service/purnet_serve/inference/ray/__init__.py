"""The model tier on a Ray cluster: `RayBackend` at the server, `ModelReplica` on the far side."""
