"""The floor, compiled here and now: what the same bytes cost in the least C++ there is (floor.cpp)."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

# As the wheel is built: portable, no -march=native.
FLAGS = ["-O3", "-std=c++20", "-shared", "-fPIC"]


def load_floor() -> Any:
    """Compiles floor.cpp with the system's compiler, $CXX or c++; returns its `Floor(workload, capacity, lanes)`."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "_floor.so"
        source = Path(__file__).with_name("floor.cpp")
        includes = [f"-I{sysconfig.get_paths()['include']}", f"-I{np.get_include()}"]
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        subprocess.run([*compiler, *FLAGS, *includes, str(source), "-o", str(library)], check=True)
        spec = importlib.util.spec_from_file_location("_floor", library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.Floor
