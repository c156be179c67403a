"""`relive.share` needs neither PyTorch nor Ray."""

import subprocess
import sys


def test_sharing_loads_no_learner_and_no_ray() -> None:
    """Bug: an actor of somebody else's framework that has to install ours."""
    code = "import sys, relive.share; print(*{'torch', 'gymnasium', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == ""
