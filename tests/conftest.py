"""Every test starts from the same random state; property tests get the time that a busy machine needs."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
