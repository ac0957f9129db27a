import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def soak_rounds():
    """A million with AIMO_TEST_SOAK=1; enough to reuse every slot many times without."""
    return 1_000_000 if os.environ.get("AIMO_TEST_SOAK") else 10_000
