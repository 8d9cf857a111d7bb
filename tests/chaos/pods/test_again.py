"""What holds for processes on one machine, tried again with each worker on the next of several hosts.

The tests are those of the modules they come from, as they are there; `world` is another.
"""

import pytest

from tests.chaos.test_kills import *  # noqa: F403 - to be collected here as well
from tests.chaos.test_sharing import *  # noqa: F403 - the same

pytestmark = pytest.mark.in_full
