"""Compiled loops that start at once: numba compiles them, their object code is kept and reloaded.

numba takes half a second and 60 MB to come up, even when everything it is asked for has long been
compiled. So the object code of each loop is written to a cache the first time, and from then on
LLVM's loader puts it into memory in milliseconds; numba is not even imported. Its name in the cache
is a digest of what is compiled, and of all that compiling depends on. Object code is kept in
``__pycache__`` beside this file or in the user's cache folder, and only where nobody but the user
and root can have written it.

The calling convention is the one that numba documents for its native functions: a place for the
result, a place for an exception, then the arguments, an array being seven values or more. Loops may
take integers and C-contiguous arrays, must not allocate, and must not raise. Where a name of numba
or llvmlite that this takes is missing, loops are ordinary functions of ``numba.njit``; where numba
is told not to compile (``NUMBA_DISABLE_JIT``), they run as Python.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

import numpy as np

from .files import opened

_CONVENTION = "1"  # how loops are called and kept; another number makes all cached ones void
_C_TYPES: dict[type, Any] = {int: ctypes.c_int64, bool: ctypes.c_int8}
_lock = threading.RLock()
_missing: list[Exception] = []  # what was said when a private name of numba or llvmlite was

Signature = tuple[str, ...]  # "i" for an integer, "<i4 1" for an array and its dimensions


Run = Callable[[tuple[Any, ...], list[Any]], tuple[Any, ...]]  # of the arguments, plain and flat


class Loop:
    """A function that is compiled for the types of its arguments when it is first called.

    Of its module it uses constants, modules, and other loops. Its results are `int` and `bool`:
    none, one, or several.
    """

    def __init__(self, function: FunctionType, returns: tuple[type, ...]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self._returns = returns
        self._ready: dict[Signature, Run] = {}

    def __call__(self, *args: Any) -> Any:
        """Run the loop, without the GIL."""
        kinds: list[str] = []
        flat: list[Any] = []  # as numba's native functions take them
        for arg in args:
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise ValueError(f"{self.__name__} takes contiguous arrays only")
                kinds.append(f"{arg.dtype.str} {arg.ndim}")
                flat += (None, None, arg.size, arg.itemsize, arg.ctypes.data)
                flat += (*arg.shape, *arg.strides)
            else:
                kinds.append("i")
                flat.append(int(arg))
        signature = tuple(kinds)
        found = (self._ready.get(signature) or self._load(signature))(args, flat)
        values = tuple([kind(value) for kind, value in zip(self._returns, found, strict=True)])
        return values if len(values) > 1 else values[0] if values else None

    def _load(self, signature: Signature) -> Run:
        """Return the loop for a signature: from the cache, newly compiled, or numba's own."""
        with _lock:
            if signature not in self._ready and not _missing:
                try:
                    self._ready[signature] = self._native(signature)
                except (AttributeError, ImportError, KeyError, TypeError) as error:
                    _missing.append(error)
            if signature not in self._ready:
                self._ready[signature] = self._ordinary()
            return self._ready[signature]

    def _native(self, signature: Signature) -> Run:
        """Return a function that calls the object code of the loop."""
        if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
            return self._ordinary()
        import llvmlite.binding as llvm

        name = f"loop-{self._digest(signature)}.o"
        kept = _read_cache(name)
        symbol, code = kept or self._compile(signature)
        engine = _engine()
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        if not kept:
            _write_cache(name, symbol, code)
        kinds: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
        for kind in signature:
            if kind == "i":
                kinds.append(ctypes.c_int64)
            else:
                kinds += [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_void_p]
                kinds += [ctypes.c_int64] * (2 * int(kind.split()[1]))
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)  # lets go of the GIL
        native = prototype(engine.get_function_address(symbol))
        names = [f"r{k}" for k in range(len(self._returns))]
        fields = [(name, _C_TYPES[kind]) for name, kind in zip(names, self._returns, strict=True)]
        result_type = type("Result", (ctypes.Structure,), {"_fields_": fields})

        def run(_args: tuple[Any, ...], flat: list[Any]) -> tuple[Any, ...]:
            result, exception = result_type(), ctypes.c_void_p()
            if native(ctypes.addressof(result), ctypes.addressof(exception), *flat):
                raise RuntimeError(f"{self.__name__} failed")
            return tuple([getattr(result, name) for name in names])

        return run

    def _ordinary(self) -> Run:
        """Return the loop as a function of ``numba.njit``: Python, if numba does not compile."""
        from numba import njit

        # numba unpickles what it finds where it keeps compiled code: beside the source or, if it
        # cannot write there, in a folder that may be anybody's.
        source = Path(self.function.__code__.co_filename).parent
        folders = [folder for folder in (source, source / "__pycache__") if folder.is_dir()]
        can_keep = "NUMBA_CACHE_DIR" not in os.environ and all(
            _is_ours(folder.stat()) and os.access(folder, os.W_OK) for folder in folders
        )
        try:
            function = self._built(njit(nogil=True, cache=can_keep))
        except RuntimeError:  # no folder that numba could write
            function = self._built(njit(nogil=True))

        def run(args: tuple[Any, ...], _flat: list[Any]) -> tuple[Any, ...]:
            plain = [arg if isinstance(arg, np.ndarray) else int(arg) for arg in args]
            with np.errstate(over="ignore"):  # Python warns where compiled integers wrap around
                found = function(*plain)
            return found if isinstance(found, tuple) else () if found is None else (found,)

        return run

    def _compile(self, signature: Signature) -> tuple[str, bytes]:
        """Compile the loop with numba; return its symbol and object code."""
        from numba import from_dtype, njit, types

        kinds = tuple(
            types.int64
            if kind == "i"
            else types.Array(from_dtype(np.dtype(kind.split()[0])), int(kind.split()[1]), "C")
            for kind in signature
        )
        options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False}
        dispatcher = self._built(njit(nogil=True, **options))
        dispatcher.compile(kinds)
        compiled = dispatcher.overloads[kinds]
        return compiled.fndesc.llvm_func_name, compiled.library._get_compiled_object()

    def _built(self, decorate: Callable[[FunctionType], Any]) -> Any:
        """Return the decorated function, which calls decorated functions in place of loops."""
        names = {
            name: value._built(decorate) if isinstance(value, Loop) else value
            for name, value in self._used().items()
        }
        names["__name__"] = self.function.__module__
        return decorate(FunctionType(self.function.__code__, names, self.__name__))

    def _used(self) -> dict[str, Any]:
        """Return the globals that the function uses, by name."""
        names = sorted({name for code in _codes(self.function.__code__) for name in code.co_names})
        found = self.function.__globals__
        return {name: found[name] for name in names if name in found}

    def _digest(self, signature: Signature) -> str:
        texts = [*_environment(), *self._content(), *signature]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:32]

    def _content(self) -> Iterator[str]:
        """Yield all that decides what is compiled; file names and line numbers do not."""
        yield repr([kind.__name__ for kind in self._returns])
        for code in _codes(self.function.__code__):
            plain = [const for const in code.co_consts if not isinstance(const, CodeType)]
            yield repr((code.co_code, code.co_names, code.co_varnames, code.co_flags, plain))
        for name, value in self._used().items():
            if isinstance(value, Loop):
                yield f"{name}: {self.function.__module__}"
                yield from value._content()
            elif isinstance(value, ModuleType):
                yield f"{name}: {value.__name__}"
            elif isinstance(value, bool | int | float | np.generic):
                yield f"{name}: {type(value).__name__} {value!r}"
            else:
                raise NotImplementedError(f"{self.__name__} cannot use {name}")


def compiled(*returns: type) -> Callable[[Callable[..., Any]], Loop]:
    """Make a `Loop` of a function that returns these types."""
    return lambda function: Loop(cast("FunctionType", function), returns)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


@cache
def _engine() -> Any:
    """Return LLVM's loader."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)


@cache
def _versions() -> tuple[str, ...]:
    """Return the versions and the processor that object code depends on."""
    import llvmlite
    import llvmlite.binding as llvm

    return (
        _CONVENTION,
        _numba_version(),
        llvmlite.__version__,
        np.__version__,
        str(sys.implementation.cache_tag),
        platform.python_version(),
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )


def _numba_version() -> str:
    """Return what tells numba's version: it is not imported for this.

    It is the name of the folder of its metadata, if there is one; to parse them takes 10 ms.
    """
    spec = find_spec("numba")
    if spec is not None and spec.origin is not None:
        found = list(Path(spec.origin).parents[1].glob("numba-*.dist-info"))
        if len(found) == 1:
            return found[0].name
    return version("numba")


def _environment() -> Iterator[str]:
    """Yield all that object code depends on besides the loop: versions and numba's settings."""
    yield from _versions()
    yield from sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("NUMBA_"))
    settings = Path(".numba_config.yaml")
    with suppress(OSError):
        if settings.is_file():
            yield settings.read_text(errors="replace")


def _folders() -> Iterator[Path]:
    """Yield where object code may be kept, best first."""
    yield Path(__file__).with_name("__pycache__")
    with suppress(RuntimeError):  # a user without a home
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if user.is_absolute():
            yield user / "cellgraph-dask"


def _is_ours(found: os.stat_result) -> bool:
    """Return whether nobody but this user and root can write a file or folder."""
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


@contextmanager
def _own(folder: Path) -> Iterator[int]:
    """Open a cache folder; raise OSError if others can write it."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        if not _is_ours(os.fstat(fd)):
            raise PermissionError(f"{folder} can be written by others")
        yield fd


def _read_cache(name: str) -> tuple[str, bytes] | None:
    """Return symbol and object code from the cache, if they are there, ours and whole."""
    for folder in _folders():
        with suppress(OSError, ValueError), _own(folder) as inside:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(name, flags, dir_fd=inside), "rb") as file:
                found = os.fstat(file.fileno())
                if stat.S_ISREG(found.st_mode) and _is_ours(found):
                    checksum, symbol, code = file.read().split(b"\n", 2)
                    if hashlib.sha256(symbol + code).hexdigest().encode() == checksum:
                        return symbol.decode(), code
    return None


def _write_cache(name: str, symbol: str, code: bytes) -> None:
    """Write symbol and object code to the first folder that takes them."""
    checksum = hashlib.sha256(symbol.encode() + code).hexdigest()
    for folder in _folders():
        with suppress(OSError):
            mode = 0o755 if folder.name == "__pycache__" else 0o700  # the package is for all
            folder.mkdir(mode, parents=True, exist_ok=True)
            with _own(folder) as inside:
                aside = f"{name}.{os.urandom(8).hex()}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                try:
                    with open(os.open(aside, flags, 0o644, dir_fd=inside), "wb") as file:
                        file.write(f"{checksum}\n{symbol}\n".encode() + code)
                    os.replace(aside, name, src_dir_fd=inside, dst_dir_fd=inside)
                except OSError:
                    os.unlink(aside, dir_fd=inside)
                    raise
                return
