"""Datasets in and out: Minari, HDF5 in D4RL's manner, Parquet, NPZ, Stable-Baselines3's replay buffers, snapshots.

    buffer = relive.interop.read("dataset.parquet")
    relive.interop.write(relive.interop.open("dataset.parquet"), "dataset.npz")

HDF5 needs h5py, Parquet needs pyarrow: pip install 'relive[interop]'.
"""

from relive.interop.buffers import of_buffer
from relive.interop.files import FORMATS, WRITABLE, open, read, write
from relive.interop.sb3 import to_sb3
from relive.interop.source import Block, Source

__all__ = ["FORMATS", "WRITABLE", "Block", "Source", "of_buffer", "open", "read", "to_sb3", "write"]
