"""Every setting, typed, with its unit and its reason. Read once: flag > environment > default."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The service's settings; each is read from `PURNET_<NAME>` when no flag gives it.

    The table in docs/settings.md is generated from the descriptions below.
    """

    model_config = SettingsConfigDict(env_prefix="PURNET_", frozen=True, extra="forbid")

    # --- where
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one.")

    # --- model
    checkpoint: Path | None = Field(
        None, description="Checkpoint to serve; by default the weights this package ships."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?(,cuda:\d+)*)$",
        description="`auto`, `cpu`, `cuda` or a list such as `cuda:0,cuda:1`: one worker each.",
    )

    # --- door (limits of uploads and requests)

    # --- queue and workers
