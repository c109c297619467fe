"""The stub libraries: compiled from `stubs/`, and loaded before onnxruntime looks for those of CUDA."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "stubs"
COMPILER = "g++"
_FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pthread")


@dataclass(frozen=True, slots=True)
class Library:
    """One library: the name that the provider links to, and what it is made of."""

    name: str
    source: str
    defines: tuple[str, ...] = ()
    is_versioned: bool = True
    """Whether symbols carry the library's name as their version, as NVIDIA's do except the driver's."""


RUNTIME = Library("libcudart.so.13", "runtime.cc")
LIBRARIES = (
    RUNTIME,
    Library("libcuda.so.1", "driver.cc", is_versioned=False),
    Library("libcublas.so.13", "blas.cc"),
    Library("libcublasLt.so.13", "blas.cc", ("BLAS_LT",)),
    Library("libcurand.so.10", "random.cc"),
)


def have_compiler() -> bool:
    return shutil.which(COMPILER) is not None


def build(folder: Path) -> None:
    """Compile all of them into a folder."""
    for library in LIBRARIES:
        command = [COMPILER, *_FLAGS, *(f"-D{name}" for name in library.defines), f"-Wl,-soname,{library.name}"]
        if library.is_versioned:
            versions = folder / f"{library.name}.map"
            versions.write_text(f"{library.name} {{ global: cu*; __cuda*; stub_*; local: *; }};\n")
            command.append(f"-Wl,--version-script={versions}")
        command += [str(SOURCES / library.source), "-o", str(folder / library.name)]
        if library is not RUNTIME:
            command.append(str(folder / RUNTIME.name))
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def load(folder: Path) -> ctypes.CDLL:
    """Load them into this process and return the runtime.

    Whoever links to a library of that name gets the one that is loaded already: no path has to be set.
    """
    loaded = [ctypes.CDLL(str(folder / library.name), ctypes.RTLD_GLOBAL) for library in LIBRARIES]
    return loaded[LIBRARIES.index(RUNTIME)]
