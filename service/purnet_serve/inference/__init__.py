"""Worker processes: one per device, killable, restartable, never trusted to stay alive."""
