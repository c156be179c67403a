"""`import relive` needs NumPy alone, and what it names is there."""

import subprocess
import sys

import relive


def test_importing_loads_nothing_but_numpy() -> None:
    code = (
        "import sys; before = set(sys.modules); import relive; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(eval(found)) <= {"relive", "numpy"}, found


def test_a_buffer_works_without_torch_and_gymnasium() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['gymnasium'] = None\n"
        "import relive; buffer = relive.ReplayBuffer(4, seed=0)\n"
        "buffer.push([0.0], 1, 1.0, False, [1.0]); state, action, reward, done, next_state = buffer.sample(2)\n"
        "try: buffer.sample(2, output='torch')\n"
        "except relive.ConfigError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "expected PyTorch" in said


def test_every_public_name_exists_and_has_words() -> None:
    for name in relive.__all__:
        assert getattr(relive, name).__doc__, name
