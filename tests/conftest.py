"""Fixtures for the whole suite: seeded draws, and GPU tests that say why they skip."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, print_blob=True)  # no timed tests: the machine may be busy
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeded():
    """Inputs are random but the same in every run; hypothesis draws its own seeds."""
    torch.manual_seed(20_260_427)


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` need a device that converts to e4m3fn."""
    if torch.cuda.is_available() and (torch.version.hip or torch.cuda.get_device_capability() >= (8, 9)):
        return
    skip = pytest.mark.skip(reason="needs a GPU with FP8 conversion (NVIDIA 8.9 or newer, or ROCm)")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
