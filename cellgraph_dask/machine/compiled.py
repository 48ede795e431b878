"""Compiled loops that start at once: numba compiles them, its object code is kept and loaded bare.

numba takes half a second and 60 MB to come up, even when everything it is asked for has long been
compiled. So the object code of each loop is written to a cache the first time, and from then on
LLVM's loader puts it into memory in milliseconds; numba is not even imported. The code is kept in
``__pycache__`` beside the package, or in the user's cache folder where that cannot be written. Its
name is a digest of all it depends on: the source, the versions, the processor, the argument types.

The calling convention is the one that numba documents for its native functions: a place for the
result, a place for an exception, then the arguments, an array being seven values or more. Loops may
take integers and C-contiguous arrays, must not allocate, and must not raise.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np

_C_TYPES: dict[type, Any] = {int: ctypes.c_int64, bool: ctypes.c_int8}
_lock = threading.RLock()

Signature = tuple[str, ...]  # "i" for an integer, "<i4 1" for an array and its dimensions


class Loop:
    """A function that is compiled for the types of its arguments when it is first called.

    Parameters
    ----------
    function
        Python source of the loop.
    returns
        Types of what it returns: `int` and `bool`; nothing, one, or several.
    """

    def __init__(self, function: FunctionType, returns: tuple[type, ...]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self._returns = returns
        fields = [(f"r{k}", _C_TYPES[kind]) for k, kind in enumerate(returns)]
        self._result = type("Result", (ctypes.Structure,), {"_fields_": fields})
        self._native: dict[Signature, Any] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the loop, without the GIL."""
        signature = []
        flat: list[Any] = []
        for arg in args:
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise ValueError(f"{self.__name__} takes contiguous arrays only")
                signature.append(f"{arg.dtype.str} {arg.ndim}")
                flat += (None, None, arg.size, arg.itemsize, arg.ctypes.data)
                flat += (*arg.shape, *arg.strides)
            else:
                signature.append("i")
                flat.append(int(arg))
        native = self._native.get(tuple(signature)) or self._load(tuple(signature))
        result, exception = self._result(), ctypes.c_void_p()
        if native(ctypes.addressof(result), ctypes.addressof(exception), *flat):
            raise RuntimeError(f"{self.__name__} failed")
        values = tuple(kind(getattr(result, f"r{k}")) for k, kind in enumerate(self._returns))
        return values if len(values) > 1 else values[0] if values else None

    def _load(self, signature: Signature) -> Any:
        """Return the native function for a signature, from the cache or newly compiled."""
        with _lock:
            if signature in self._native:
                return self._native[signature]
            symbol, code = _read_cache(self._digest(signature)) or self._compile(signature)
            engine = _engine()
            engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            engine.finalize_object()
            kinds: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
            for kind in signature:
                if kind == "i":
                    kinds.append(ctypes.c_int64)
                else:
                    integers = 2 + 2 * int(kind.split()[1])
                    kinds += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
                    kinds += [ctypes.c_int64] * (integers - 2)
            prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)  # lets go of the GIL
            native = self._native[signature] = prototype(engine.get_function_address(symbol))
            return native

    def _digest(self, signature: Signature) -> str:
        source = _digest_of(self.function.__code__.co_filename)
        text = "\n".join([*_environment(), source, self.__name__, *signature])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _compile(self, signature: Signature) -> tuple[str, bytes]:
        """Compile the loop with numba, and keep its object code."""
        from numba import from_dtype, types

        kinds = [
            types.int64
            if kind == "i"
            else types.Array(from_dtype(np.dtype(kind.split()[0])), int(kind.split()[1]), "C")
            for kind in signature
        ]
        dispatcher = self.dispatcher()
        dispatcher.compile(tuple(kinds))
        compiled = dispatcher.overloads[tuple(kinds)]
        symbol = compiled.fndesc.llvm_func_name
        code = compiled.library._get_compiled_object()
        _write_cache(self._digest(signature), symbol, code)
        return symbol, code

    def dispatcher(self) -> Any:
        """Return the loop as numba knows it, with the loops that it calls."""
        from numba import njit

        names = {
            name: value.dispatcher() if isinstance(value, Loop) else value
            for name, value in self.function.__globals__.items()
            if name in self.function.__code__.co_names
        }
        return njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False)(
            FunctionType(self.function.__code__, names, self.__name__)
        )


def compiled(*returns: type) -> Callable[[Callable[..., Any]], Loop]:
    """Make a `Loop` of a function that returns these types."""

    def make(function: Callable[..., Any]) -> Loop:
        assert isinstance(function, FunctionType)
        return Loop(function, returns)

    return make


@cache
def _engine() -> Any:
    """Return LLVM's loader."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


@cache
def _environment() -> tuple[str, ...]:
    """Return all that object code depends on besides the loop itself."""
    return (
        _digest_of(__file__),
        version("numba"),  # not imported for this
        llvmlite.__version__,
        np.__version__,
        platform.python_version(),
        platform.system(),
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )


@cache
def _digest_of(path: str) -> str:
    """Return a digest of a source file, with all loops in it."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@cache
def _folders() -> tuple[Path, ...]:
    """Return where object code may be kept, best first."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(__file__).with_name("__pycache__"), user / "cellgraph-dask"


def _read_cache(digest: str) -> tuple[str, bytes] | None:
    """Return symbol and object code from the cache, if they are there and whole."""
    for folder in _folders():
        with suppress(OSError):
            content = (folder / f"loop-{digest}.o").read_bytes()
            checksum, _, rest = content.partition(b"\n")
            if hashlib.sha256(rest).hexdigest().encode() == checksum:
                symbol, _, code = rest.partition(b"\n")
                return symbol.decode(), code
    return None


def _write_cache(digest: str, symbol: str, code: bytes) -> None:
    """Keep symbol and object code."""
    rest = symbol.encode() + b"\n" + code
    _keep(f"loop-{digest}.o", hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)


def start_compiler() -> None:
    """Bring numba up, so that what it takes is there to be measured; loops then add little."""
    from numba import njit

    njit("int64(int64)", nogil=True)(_same)


def _same(number: int) -> int:
    return number


def is_complete(use: str, *sources: str) -> bool:
    """Tell whether all loops of a use of this package are known to be in the cache.

    Parameters
    ----------
    use
        What decides which loops are called, and with arguments of which types.
    sources
        Files that the loops are in.
    """
    name = _mark(use, sources)
    return any((folder / name).exists() for folder in _folders())


def note_complete(use: str, *sources: str) -> None:
    """Note that all loops of a use have been called, so that they are in the cache now."""
    if not is_complete(use, *sources):
        _keep(_mark(use, sources), b"")


def _mark(use: str, sources: tuple[str, ...]) -> str:
    text = "\n".join([*_environment(), *map(_digest_of, sources), use])
    return f"complete-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _keep(name: str, content: bytes) -> None:
    """Write a file to the first folder that can be written."""
    for folder in _folders():
        aside = folder / f"{name}.{os.getpid()}-{threading.get_ident()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(content)
            aside.replace(folder / name)
        except OSError:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            continue
        return
