"""A reading of pickles that builds arrays and plain containers and nothing else.

Classes of Stable-Baselines3, Gymnasium, PyTorch and NumPy's generators become inert objects that only keep their state;
any other global is refused by name, so that no code that a file brings or points to is run.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from relive.errors import DatasetError

INERT = ("stable_baselines3", "sb3_contrib", "gymnasium", "gym", "torch", "numpy.random")
"""Packages whose classes are kept as what they hold."""


class Inert:
    """What stands for an object of a class that is not loaded.

    Attributes:
        kind: module and name of the class.
    """

    kind = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes anything, keeps nothing: the state comes after."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0]
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        """Spaces of old are dicts; their items are of no use here."""


class _Call:
    """A function that a pickle may call and not change: pickles can set attributes of what they name."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise TypeError("a pickle that changes a function")


def _plain() -> dict[tuple[str, str], Any]:
    """The only globals that are what they seem."""
    found: dict[tuple[str, str], Any] = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "deque"): collections.deque,
    }
    # Where NumPy keeps what its own pickles name: taken from such pickles, as these places are private.
    for value in (np.zeros(2), np.float64(1), np.asfortranarray(np.zeros((2, 2)))):
        for protocol in (2, 5):
            seen = _Spy(pickle.dumps(value, protocol)).globals()
            for (module, name), thing in seen.items():
                for root in ("numpy.core", "numpy._core"):
                    found[module.replace("numpy._core", root).replace("numpy.core", root), name] = (
                        thing if isinstance(thing, type) else _Call(thing)
                    )
    return found


class _Spy(pickle.Unpickler):
    """Reads a pickle that we have just made ourselves, and tells which globals it names."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._seen: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        self._seen[module, name] = thing = super().find_class(module, name)
        return thing

    def globals(self) -> dict[tuple[str, str], Any]:
        self.load()
        return self._seen


class _Restricted(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path, self._plain = path, _plain()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._plain:
            return self._plain[module, name]
        if any(module == root or module.startswith(root + ".") for root in INERT):
            return type(name.rpartition(".")[2], (Inert,), {"kind": f"{module}.{name}"})
        raise DatasetError(
            f"{self._path}: expected a pickle of Stable-Baselines3's own classes and arrays, got {module}.{name}. "
            "Nothing of it was run. Objects of other packages cannot be read."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise DatasetError(f"{self._path}: expected a whole pickle, got a reference to something outside of it.")


def load(path: Path) -> Any:
    """What a pickle holds, with inert objects for those of the packages in `INERT`.

    Raises:
        DatasetError: a damaged file, or a global that is not known to be harmless.
    """
    with path.open("rb") as file:
        try:
            return _Restricted(file, path).load()
        except DatasetError:
            raise
        except MemoryError:
            raise DatasetError(
                f"{path}: expected a pickle that fits into memory, got one that asks for more than there is."
            ) from None
        except Exception as error:  # whatever damaged bytes make the machine of pickles do
            said = str(error).partition("\n")[0].rstrip(".")
            raise DatasetError(f"{path}: expected a pickle, got what cannot be read ({said}).") from None
