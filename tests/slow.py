"""The mark of tests that take longest, which are run on demand so that all others fit into CI's quarter of an hour."""

from __future__ import annotations

import os

import pytest

slow = pytest.mark.skipif("TMBENCH_SLOW" not in os.environ, reason="takes long: TMBENCH_SLOW=1 runs it")
