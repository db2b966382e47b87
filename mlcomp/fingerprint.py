"""A SHA-256 of what a result depends on: numbers, tensors, models, and code with all that it refers to.

The same values give the same hash in another process: neither addresses nor the order of a set or of a dict's keys
enter it. Functions and classes of your own enter with their code, defaults, captured values, and the globals that
they read, down to the helpers of helpers; those of installed packages and of this one with their name, the package's
version and the source file that they stand in. What a function itself assigns (a counter, ``global`` or ``nonlocal``)
is its state, not a setting, and stays out. Two objects are told apart by what pickle would store of them.
"""

import copyreg
import functools
import hashlib
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlcomp.references import assigned, found, installed, read_globals, rebound

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_DESCRIPTORS = (property, classmethod, staticmethod, functools.cached_property)
# What shows all that it is, without an address.
_SHOWN: tuple[type, ...] = (torch.dtype, torch.layout, torch.memory_format, torch.finfo, torch.iinfo)
_SHOWN += (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
# What C code hands out: by name, and by the class or object that it belongs to.
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# What nn.Module keeps for itself: parameters, buffers, modules and hooks are described apart; the mode is none of it.
# Nor is how transformers draws text: its settings hold a hash of this process.
_OF_MODULES = frozenset(vars(nn.Module())) | {"_is_hf_initialized", "generation_config"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What Python or a decorator makes of a class's body: its fields are seen in what they do.
_OF_CLASSES = frozenset(
    "__module__ __qualname__ __dict__ __weakref__ __doc__ __annotations__ __annotate__ __annotate_func__ "
    "__annotations_cache__ __dataclass_fields__ __dataclass_params__ __match_args__ __abstractmethods__ _abc_impl "
    "__firstlineno__ __static_attributes__ __parameters__ __orig_bases__ __type_params__ _member_map_ "
    "_value2member_map_ _member_names_ _hashable_values_ _unhashable_values_ _unhashable_values_map_".split()
)
_CHECKERS = ("jaxtyping", "beartype")  # their wrappers look at arguments and change nothing


class NoFingerprintError(ValueError):
    """Something has no description that would be the same in another process."""


def hash_values(values: Any) -> str:
    """Return a SHA-256 of any nested values: tensors, models, functions, classes, objects that can be pickled.

    Raises:
        ValueError: something without a stable description, such as an open file or a lock.
    Cost: that of SHA-256 over all tensors (half a second to a second and a half for 0.5 GB).
    """
    return _Describer().of(values).hex()


def hash_model(model: nn.Module) -> str:
    """Return a SHA-256 of what the model computes: classes, structure, weights, buffers, attributes, hooks, ties.

    The mode, and which parameters require a gradient, are none of it. An attribute without a stable description
    counts by its type alone.
    """
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return hash_values((model, {name: first.setdefault(id(value), name) for name, value in named}))


def hash_batches(batches: Iterable | None) -> str:
    """Return a SHA-256 of all batches; they are read once, and their number need not be known."""
    digest = hashlib.sha256()
    for batch in () if batches is None else batches:
        digest.update(_Describer().of(batch))
    return digest.hexdigest()


def _sum(kind: str, parts: Iterable[bytes] = ()) -> bytes:
    """Return the digest of a kind and of its parts' digests, all 32 bytes long."""
    return hashlib.sha256(kind.encode("utf-8", "backslashreplace") + b"\0" + b"".join(parts)).digest()


class _Describer:
    """Digests of values. Where a value refers to one that is still being described, the way back stands for it."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}  # id → depth of what is being described
        self.closed: dict[int, tuple[Any, bytes]] = {}  # id → what was described, kept alive, and its digest
        self.lowest = sys.maxsize  # the least depth that was referred back to
        self.trail: list[str] = []

    def of(self, value: Any) -> bytes:
        if type(value) in _PLAIN:
            return _sum(f"{type(value).__name__} {value!r}")
        key = id(value)
        if key in self.closed:
            return self.closed[key][1]
        depth = len(self.open)
        if key in self.open:
            self.lowest = min(self.lowest, self.open[key])
            return _sum(f"back {depth - self.open[key]}")
        before, self.lowest = self.lowest, sys.maxsize
        self.open[key] = depth
        try:
            digest = self._describe(value)
        except RecursionError:
            raise self._refusal(value, "it is nested too deeply") from None
        finally:
            del self.open[key]
            inside, self.lowest = self.lowest, min(before, self.lowest)
        if inside >= depth:  # nothing in it refers to what lies outside, so it has this digest wherever it stands
            self.closed[key] = (value, digest)
            self.lowest = before
        return digest

    def at(self, label: str, value: Any) -> bytes:
        """Return the digest of a value that an error would name by ``label``."""
        self.trail.append(label)
        try:
            return self.of(value)
        finally:
            self.trail.pop()

    def named(self, label: str, values: Mapping[Any, Any]) -> Iterator[bytes]:
        """Yield the digests of keys and values, in the order of the keys' own digests."""
        pairs = [(self.of(key), self.at(f"{label} {key!r}", value)) for key, value in values.items()]
        for key, value in sorted(pairs):
            yield key + value

    def _refusal(self, value: Any, why: object) -> NoFingerprintError:
        where = f" ({', '.join(self.trail)})" if self.trail else ""
        return NoFingerprintError(
            f"cannot tell a {type(value).__module__}.{type(value).__qualname__}{where} from another one after a "
            f"restart: {why}. Give its options as numbers, strings or tensors (functools.partial), or give its class "
            "a __getstate__ that returns them"
        )

    def _describe(self, value: Any) -> bytes:
        for kinds, describe in _DESCRIBED:
            if isinstance(value, kinds):
                return describe(self, value)
        return self._object(value)

    def _tensor(self, value: Tensor) -> bytes:
        if value.layout == torch.sparse_coo:
            value = value.detach().coalesce()
            return _sum(f"sparse {tuple(value.shape)}", (self.of(value.indices()), self.of(value.values())))
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise self._refusal(value, f"a tensor of layout {value.layout} on {value.device} has no plain values")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest = hashlib.sha256(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.digest()

    def _array(self, value: np.ndarray) -> bytes:
        if value.dtype.hasobject:
            return _sum(f"array {value.shape}", map(self.of, value.reshape(-1).tolist()))
        return _sum(f"array {value.dtype.str} {value.shape}", (hashlib.sha256(value.tobytes()).digest(),))

    def _module(self, value: nn.Module) -> bytes:
        parts = [self.of(type(value))]
        for kind in ("_parameters", "_buffers", "_modules"):
            for name, part in getattr(value, kind).items():  # in order: nn.Sequential runs so
                parts += [self.of(name), self.at(name, part)]
        own = {key: part for key, part in vars(value).items() if key not in _OF_MODULES}
        own |= {key: list(vars(value).get(key, {}).values()) for key in _HOOKS}  # their keys count all hooks
        return _sum("module", parts + [self.of(key) + self._if_clear(own[key]) for key in sorted(own)])

    def _if_clear(self, value: Any) -> bytes:
        try:
            return self.of(value)
        except NoFingerprintError:
            return _sum("unclear", (self.of(type(value)),))

    def _class(self, value: type) -> bytes:
        if (home := installed(value.__module__)) is not None:
            known = found(value.__module__, value.__qualname__) is value
            return _sum(f"class {value.__qualname__} {home}", () if known else map(self.of, value.__bases__))
        own = {key: part for key, part in vars(value).items() if key not in _OF_CLASSES}
        return _sum(f"class {value.__qualname__}", [*map(self.of, value.__bases__), *self.named("attribute", own)])

    def _function(self, value: types.FunctionType) -> bytes:
        if found(value.__module__, value.__qualname__) is value and (home := installed(value.__module__)):
            return _sum(f"function {value.__qualname__} {home}")
        where = str(value.__globals__.get("__name__"))
        home = installed(where) if vars(sys.modules.get(where, types)) is value.__globals__ else None
        if home is not None and where.partition(".")[0] in _CHECKERS and hasattr(value, "__wrapped__"):
            return self.of(value.__wrapped__)
        code, extra = value.__code__, {k: v for k, v in vars(value).items() if k != "__wrapped__"}
        parts = [self.of(code), self.of(value.__defaults__), self.of(value.__kwdefaults__)]
        parts += self.named("attribute", {} if home else extra)
        state = rebound(code, frozenset(code.co_freevars))
        for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
            if name not in state:
                parts.append(self.at(f"captured {name}", cell))
        if home is None:
            state = assigned(code)
            read = {label: part for label, part in read_globals(code, value.__globals__) if label not in state}
            parts += self.named("global", read)
        return _sum(f"function {home}", parts)

    def _cell(self, value: types.CellType) -> bytes:
        try:
            contents = value.cell_contents
        except ValueError:
            return _sum("empty")
        return self.of(contents)

    def _code(self, value: types.CodeType) -> bytes:
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        return _sum("code", map(self.of, (value.co_code, value.co_exceptiontable, names, counts, value.co_consts)))

    def _python_module(self, value: types.ModuleType) -> bytes:
        if (home := installed(value.__name__)) is not None:
            return _sum(f"package {value.__name__} {home}")
        own = {key: part for key, part in vars(value).items() if not (key.startswith("__") and key.endswith("__"))}
        return _sum("file", self.named(f"{value.__name__}'s", own))

    def _descriptor(self, value: Any) -> bytes:
        parts = (getattr(value, name, None) for name in ("fget", "fset", "fdel", "__func__", "func"))
        return _sum(type(value).__name__, map(self.of, parts))

    def _built_in(self, value: Any) -> bytes:
        owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            module = getattr(value, "__module__", None) or getattr(owner, "__name__", "builtins")
            return _sum(f"built-in {value.__qualname__} {installed(module)}")
        return _sum(f"built-in {value.__name__}", (self.of(owner),))

    def _mapping(self, value: Mapping) -> bytes:
        parts = list(self.named("entry", value))
        if isinstance(value, OrderedDict):  # equal only in the same order
            parts.append(self.of(list(value)))
        return _sum("mapping", self._kind(value) + parts)

    def _set(self, value: Set) -> bytes:
        return _sum("set", self._kind(value) + sorted(map(self.of, value)))

    def _sequence(self, value: list | tuple) -> bytes:
        if {*map(type, value)} <= {*_PLAIN}:
            return _sum(f"plain {list(value)!r}", self._kind(value))
        return _sum(f"sequence {len(value)}", self._kind(value) + list(map(self.of, value)))

    def _kind(self, value: Any) -> list[bytes]:
        """Return what a class of containers adds to the contents: nothing for Python's own."""
        if type(value) in (dict, list, tuple, set, frozenset, OrderedDict, types.MappingProxyType):
            return []
        own = getattr(value, "__dict__", None) if installed(type(value).__module__) is None else None
        return [self.of(type(value)), self.of(own)]

    def _object(self, value: Any) -> bytes:
        try:
            known = copyreg.dispatch_table.get(type(value))  # how pickle asks
            reduced = known(value) if known else value.__reduce_ex__(4)
        except Exception as problem:
            raise self._refusal(value, problem) from problem
        if isinstance(reduced, str):  # a name that pickle would look up
            return _sum(f"object {reduced}", (self.of(type(value)),))
        state, entries, pairs = [*reduced[2:5], None, None, None][:3]
        parts = [self.of(reduced[0]), self.of(reduced[1]), self.at(f"state of {type(value).__qualname__}", state)]
        parts += [self.of(list(entries or ())), self.of(dict(pairs or ()))]
        return _sum("object", parts)


# In this order, since a class may be of several kinds.
_DESCRIBED: tuple[tuple[Any, Any], ...] = (
    (Tensor, _Describer._tensor),
    (np.ndarray, _Describer._array),
    (nn.Module, _Describer._module),
    (torch.Generator, lambda self, value: _sum("generator", (self.of(value.get_state()),))),
    (_SHOWN, lambda self, value: _sum(repr(value))),
    ((weakref.WeakKeyDictionary, weakref.WeakValueDictionary), lambda self, value: _sum("weak")),  # a cache
    (type, _Describer._class),
    (types.FunctionType, _Describer._function),
    (types.MethodType, lambda self, value: _sum("method", (self.of(value.__func__), self.of(value.__self__)))),
    (types.CellType, _Describer._cell),
    (types.CodeType, _Describer._code),
    (types.ModuleType, _Describer._python_module),
    (functools._lru_cache_wrapper, lambda self, value: _sum("cached", (self.of(value.__wrapped__),))),
    (functools.partial, lambda self, v: _sum("partial", map(self.of, (v.func, v.args, v.keywords)))),
    (_DESCRIPTORS, _Describer._descriptor),
    (_BUILT_IN, _Describer._built_in),
    (Mapping, _Describer._mapping),
    (Set, _Describer._set),
    (list | tuple, _Describer._sequence),
)
