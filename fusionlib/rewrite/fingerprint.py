"""A hash of everything a Python callable computes with, equal in every process, or the reason why there is none.

A callable is its code and everything the code can reach: constants, defaults, closure, the globals it names and what
those reach in turn, an instance's class and state. Code of modules whose results depend only on the arguments is
identified by name. What cannot be inspected, or itself reads outside state (the environment, a file, a tensor's memory,
a cache of results), has no hash: `NoFingerprint` says which part that is.
"""

from __future__ import annotations

import builtins
import collections
import dis
import enum
import functools
import hashlib
import inspect
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

#: Modules whose functions depend only on their arguments.
PURE_MODULES = {
    "abc", "bisect", "collections", "collections.abc", "copy", "dataclasses", "enum", "fractions", "functools",
    "itertools", "math", "numbers", "operator", "re", "reprlib", "string", "struct", "types", "typing",
    "_bisect", "_collections", "_functools", "_operator", "_struct",
}  # fmt: skip
_IMPURE_BUILTINS = {
    "__import__", "breakpoint", "compile", "dir", "eval", "exec", "globals", "help", "id", "input", "locals",
    "open", "vars",
}  # fmt: skip
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
_CONTAINERS = (dict, list, tuple, set, frozenset, int, float, str, bytes)
_TUPLE_GETTER = collections._tuplegetter  # type: ignore[attr-defined]  # missing from the stubs; namedtuple uses it
_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller, _TUPLE_GETTER)
_C_DESCRIPTORS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
# What a class statement, `abc`, `dataclass` and `typing` leave in a class, and what follows from its other parts.
_BOOKKEEPING = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "_is_protocol",
}  # fmt: skip
_MOST_OBJECTS = 100_000


class NoFingerprint(TypeError):
    """A part of a callable that cannot be hashed faithfully; the message names it."""


def fingerprint(obj: object, covered: Callable[[str], bool] = lambda module: False) -> str:
    """The hash of `obj` and of everything it reaches.

    Args:
        obj: a callable, or data that one holds.
        covered: whether a module's source is hashed elsewhere, so that what it defines is identified by name.

    Raises:
        NoFingerprint: if a part cannot be hashed faithfully.
    """
    walk = _Walk(covered)
    try:
        walk.visit(obj, "it")
    except NoFingerprint:
        raise
    except RecursionError:
        raise NoFingerprint("it is nested too deeply") from None
    except Exception as error:  # a third-party property or descriptor that fails when read
        raise NoFingerprint(f"looking into it failed with {type(error).__name__}: {error}") from error
    return walk.hexdigest()


class _Walk:
    """One walk over an object and what it reaches, in the same order in every process."""

    def __init__(self, covered: Callable[[str], bool]) -> None:
        self._covered, self._hash = covered, hashlib.sha256(sys.version.encode())
        self._seen: dict[int, tuple[int, object]] = {}  # the object too, so that its id is not reused
        self._visits = 0

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def _write(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass")
            self._hash.update(b"%d:" % len(data) + data)

    def visit(self, obj: object, where: str) -> None:
        """Hash `obj`; `where` says in words how it is reached."""
        self._visits += 1
        if self._visits > _MOST_OBJECTS:
            raise NoFingerprint(f"it reaches more than {_MOST_OBJECTS} objects")
        kind = type(obj)
        if kind in _ATOMS or isinstance(obj, _TORCH_ATOMS):
            self._write(kind.__name__, repr(obj))
        elif isinstance(obj, _OPS):
            self._write("op", str(obj))
        elif kind in (tuple, types.CodeType, frozenset, set):
            self._value(obj, where)
        elif id(obj) in self._seen:
            self._write("again", self._seen[id(obj)][0])
        else:
            self._seen[id(obj)] = len(self._seen), obj
            self._object(obj, where)

    def _value(self, obj: Any, where: str) -> None:
        """What is compared by value: whether it is one object or two depends on how Python loaded the code."""
        self._write(type(obj).__name__)
        if isinstance(obj, types.CodeType):
            self._code(obj, where)
        elif isinstance(obj, tuple):
            self._items(obj, where)
        else:
            self._write(len(obj), *sorted(self._apart(item, where) for item in obj))

    def _apart(self, obj: object, where: str) -> str:
        walk = _Walk(self._covered)
        walk._visits = self._visits
        walk.visit(obj, where)
        self._visits = walk._visits
        return walk.hexdigest()

    def _items(self, items: Any, where: str) -> None:
        self._write(len(items))
        for index, item in enumerate(items):
            self.visit(item, f"{where}[{index}]")

    def _mapping(self, items: Any, where: str) -> None:
        self._write(len(items))
        for key, item in items.items():
            self.visit(key, f"a key of {where}")
            self.visit(item, f"{where}[{key!r:.40}]")

    def _object(self, obj: Any, where: str) -> None:
        if (name := self._known_name(obj)) is not None:
            self._write("name", name)
        elif isinstance(obj, types.FunctionType):
            self._function(obj, where)
        elif isinstance(obj, type):
            self._class(obj, where)
        elif hasattr(type(obj), "__fingerprint__"):
            self._write("by its own account", type(obj).__qualname__)
            self.visit(obj.__fingerprint__(), f"the fingerprint of {where}")
        elif isinstance(obj, enum.Enum):
            self._write("member", obj.name)
            self.visit(type(obj), f"the class of {where}")
        elif not self._wrapper(obj, where) and not self._c_object(obj, where):
            self._instance(obj, where)

    def _known_name(self, obj: Any) -> str | None:
        """The name of a function or class whose module is pure, covered or torch's, if that name still refers to it."""
        if not isinstance(obj, (types.FunctionType, types.BuiltinFunctionType, type)):
            return None
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if not isinstance(module, str) or not self._trusted(obj, module, name):
            return None
        try:
            found = operator.attrgetter(name)(sys.modules[module])
        except (KeyError, AttributeError):
            return None
        return f"{module}.{name}" if found is obj else None

    def _trusted(self, obj: object, module: str, name: str) -> bool:
        if module == "builtins":
            return name not in _IMPURE_BUILTINS
        if module.split(".")[0] == "torch":  # its functions may read a global setting: a default dtype, a device
            return isinstance(obj, type) or module.startswith("torch.fx.")
        return module in PURE_MODULES or self._covered(module)

    # Code.

    def _function(self, fn: types.FunctionType, where: str) -> None:
        self._write("function")
        self.visit(fn.__code__, where)
        self.visit(fn.__defaults__, f"a default of {where}")
        self.visit(fn.__kwdefaults__, f"a default of {where}")
        self.visit(fn.__dict__, f"the attributes of {where}")
        cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
        for name, cell in cells.items():
            self._write("closure", name)
            try:
                held = cell.cell_contents
            except ValueError:
                self._write("empty")
                continue
            if not isinstance(held, types.ModuleType):
                self.visit(held, f"the closure variable {name!r} of {where}")
        for name, attributes, of_closure in sorted(set(_names(fn.__code__))):
            self._write("name", name, *attributes)
            if not of_closure and not self._is_trusted_world(fn.__globals__):
                self._global(fn.__globals__, name, attributes, where)
            elif name in cells and isinstance(held := cells[name].cell_contents, types.ModuleType):
                self._reached(held, name, attributes, where)

    def _is_trusted_world(self, namespace: dict[str, Any]) -> bool:
        """Whether these are the globals of a module that is identified by name, such as those of the function that
        `dataclass` wraps around `__repr__`."""
        name: str = namespace.get("__name__", "")
        own = getattr(sys.modules.get(name), "__dict__", None) is namespace
        return own and (name in PURE_MODULES or self._covered(name))

    def _global(self, namespace: dict[str, Any], name: str, attributes: tuple[str, ...], where: str) -> None:
        if name in namespace:
            self._reached(namespace[name], name, attributes, where)
        elif hasattr(builtins, name):
            self.visit(getattr(builtins, name), f"the builtin {name!r} of {where}")
        else:
            self._write("undefined")

    def _reached(self, value: object, name: str, attributes: tuple[str, ...], where: str) -> None:
        """A global, or, of a module, the attributes taken from it: a whole module is too much to hash."""
        left = list(attributes)
        while isinstance(value, types.ModuleType) and left:
            name = f"{name}.{left[0]}"
            try:
                value = getattr(value, left.pop(0))
            except AttributeError:
                return self._write("undefined")
        if isinstance(value, types.ModuleType) and value.__name__ not in PURE_MODULES:
            raise NoFingerprint(f"{where} uses the module {name!r} as a whole")
        if isinstance(value, types.ModuleType):
            return self._write("module", value.__name__)
        return self.visit(value, f"{name!r} in {where}")

    def _code(self, code: types.CodeType, where: str) -> None:
        self._write(code.co_code, code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._write(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable)
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME" and instruction.argval not in PURE_MODULES:
                raise NoFingerprint(f"{where} imports {instruction.argval!r} when it is called: import it outside")
        self._items(code.co_consts, where)

    # Classes and instances.

    def _class(self, cls: type, where: str) -> None:
        self._write("class", cls.__qualname__)
        self.visit(type(cls), f"the class of {where}")
        for base in cls.__bases__:
            self.visit(base, f"a base of {where}")
        self._write(repr(inspect.get_annotations(cls)))
        if issubclass(cls, enum.Enum):
            self._mapping({name: member.value for name, member in cls.__members__.items()}, where)
        for name, attribute in sorted(cls.__dict__.items()):
            if name in _BOOKKEEPING or (issubclass(cls, enum.Enum) and not isinstance(attribute, types.FunctionType)):
                continue
            self._write(name)
            if not isinstance(attribute, types.MemberDescriptorType):  # otherwise a slot: the instances hold it
                self.visit(attribute, f"{name!r} of {where}")

    def _wrapper(self, obj: Any, where: str) -> bool:
        """Whether `obj` is a function with something around it."""
        parts: tuple[str, ...] = ()
        if isinstance(obj, types.MethodType):
            parts = "__func__", "__self__"
        elif isinstance(obj, (staticmethod, classmethod)):
            parts = ("__func__",)
        elif type(obj) is property:
            parts = "fget", "fset", "fdel"
        elif type(obj) is functools.cached_property:
            parts = ("func",)
        elif type(obj) is functools.partial:
            parts = "func", "args", "keywords", "__dict__"
        elif type(obj) is functools.partialmethod:
            parts = "func", "args", "keywords"
        for part in parts:
            self._write(type(obj).__name__, part)
            self.visit(getattr(obj, part), f"{part!r} of {where}")
        return bool(parts)

    def _c_object(self, obj: Any, where: str) -> bool:
        """Whether `obj` is one of the C objects whose state is known."""
        if isinstance(obj, (types.BuiltinMethodType, types.MethodWrapperType)):
            if isinstance(obj.__self__, types.ModuleType) or obj.__self__ is None:
                raise NoFingerprint(f"{where} is {obj!r}, which may depend on more than its arguments")
            state: tuple[object, ...] = (obj.__name__, obj.__self__)
        elif isinstance(obj, _C_DESCRIPTORS):
            state = obj.__name__, obj.__objclass__
            if self._known_name(obj.__objclass__) is None:
                raise NoFingerprint(f"{where} is {obj!r}, whose class is made in C")
        elif type(obj) in _GETTERS:
            state = obj.__reduce__()[1:]
        elif isinstance(obj, re.Pattern):
            state = obj.pattern, obj.flags
        elif isinstance(obj, (range, slice)):
            state = obj.start, obj.stop, obj.step
        elif isinstance(obj, types.SimpleNamespace):
            state = (vars(obj),)
        elif type(obj) in (types.MappingProxyType, collections.OrderedDict):
            state = (dict(obj),)
        elif type(obj) is collections.defaultdict:
            state = obj.default_factory, dict(obj)
        elif type(obj) is collections.deque:
            state = list(obj), obj.maxlen
        else:
            return False
        self._write(type(obj).__name__)
        self._items(state, where)
        return True

    def _instance(self, obj: Any, where: str) -> None:
        """An object of a class written in Python, or of a builtin container: everything it holds is visible."""
        kind = type(obj)
        for base in kind.__mro__:
            if base is not object and base not in _CONTAINERS and not self._in_python(base):
                raise NoFingerprint(f"{where} is an object of {kind.__module__}.{kind.__qualname__}")
        self._write("instance")
        self.visit(kind, f"the class of {where}")
        for name in _slots(kind):
            self._write("slot", name)
            if hasattr(obj, name):
                self.visit(getattr(obj, name), f"{where}.{name}")
        for name, held in vars(obj).items() if hasattr(obj, "__dict__") else ():
            self._write("attribute", name)
            self.visit(held, f"{where}.{name}")
        self._content(obj, where)

    def _in_python(self, cls: type) -> bool:
        """Whether a class keeps its objects' state visible to Python; one made in C fails later, at its methods."""
        if cls.__module__.split(".")[0] == "torch" or cls.__module__ == "builtins":
            return False
        return self._known_name(cls) is None or cls.__module__ in ("typing", "abc") or self._covered(cls.__module__)

    def _content(self, obj: Any, where: str) -> None:
        if isinstance(obj, dict):
            self._mapping({key: dict.__getitem__(obj, key) for key in dict.__iter__(obj)}, where)
        elif isinstance(obj, list):
            self._items(list(list.__iter__(obj)), where)
        elif isinstance(obj, tuple):
            self._items(tuple(tuple.__iter__(obj)), where)
        elif isinstance(obj, (set, frozenset)):
            self._value(frozenset(obj), where)
        for plain in (int, float, str, bytes):
            if isinstance(obj, plain):
                self._write(plain.__repr__(obj))


def _slots(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        yield from sorted(n for n, slot in base.__dict__.items() if isinstance(slot, types.MemberDescriptorType))


def _names(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """(name, the attributes taken from it directly, whether it is from a closure) for every outside lookup."""
    instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    for index, instruction in enumerate(instructions):
        of_closure = instruction.opname.endswith(("_DEREF", "_CLASSDEREF"))
        if not instruction.opname.startswith("LOAD_") or not (
            of_closure or instruction.opname.endswith(("_GLOBAL", "_GLOBALS", "LOAD_NAME"))
        ):
            continue
        attributes = []
        for following in instructions[index + 1 :]:
            if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                break
            attributes.append(following.argval)
        yield instruction.argval, tuple(attributes), of_closure
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def covered_by(files: Iterable[Path]) -> Callable[[str], bool]:
    """Whether a module's file is one of `files`: what `fingerprint` takes as `covered`."""
    known = {str(file) for file in files}
    return lambda module: str(getattr(sys.modules.get(module), "__file__", "")) in known
