"""Autocast that may also be asked of devices that have none, such as meta."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_enabled(device: torch.device) -> bool:
    """Whether operations on ``device`` run in autocast's type."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def autocast(device: torch.device, *, enabled: bool) -> AbstractContextManager:
    """Operations on ``device`` inside the block run in autocast's type, or in the types of their inputs."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=enabled) if available else nullcontext()
