"""Fixtures for the whole suite: seeded draws, and GPU tests that say why they skip."""

import secrets

import pytest
import torch
from hypothesis import settings

from fusionlib.contract import amd_arch
from fusionlib.devices import converts_to_fp8

SEED = 20_260_427
# No timed tests: the machine may be busy. No database: what an earlier run found must not decide this one.
settings.register_profile("suite", deadline=None, print_blob=True, database=None)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """Properties draw from one seed, so that two runs are alike; `--hypothesis-seed=random` draws others each time."""
    given = config.getoption("--hypothesis-seed")
    if given in (None, "random"):
        config.option.hypothesis_seed = SEED if given is None else secrets.randbelow(2**32)  # workers get it, too


def pytest_report_header(config):
    """What to give to a later run for the same draws, or for others."""
    seed = config.getoption("--hypothesis-seed")
    return f"properties: --hypothesis-seed={seed} (--hypothesis-seed=random or another number for fresh ones)"


@pytest.fixture(autouse=True)
def seeded():
    """Inputs are random but the same in every run."""
    torch.manual_seed(SEED)


#: Files of a minute and more on two cores. Begun last, one of them would keep a single core busy at the end.
LONGEST = (
    "lab/notebooks/test_controls.py", "rewrite/test_transformers.py", "models/test_transformers_models.py",
    "lab/exercises/test_exercises.py", "testing/test_judgement.py", "rewrite/test_fingerprint.py",
    "kernels/test_interpreter.py", "test_tensor_parallel.py", "match/test_random_spellings.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files come first; tests marked `gpu` need a device that converts to e4m3fn."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0].removeprefix("tests/"), len(order)))
    if torch.cuda.is_available() and converts_to_fp8(torch.cuda.get_device_capability(), amd_arch()):
        return
    skip = pytest.mark.skip(reason="needs a GPU with FP8 conversion (NVIDIA 8.9 or newer, or ROCm)")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
