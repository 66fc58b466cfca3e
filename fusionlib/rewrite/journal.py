"""Changes to a graph that can be undone, all or none.

Every change is recorded before it is made, so that one that fails half-way is undone too. Afterwards the graph
holds the same nodes in the same order, with the same arguments and the same order of users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx


class Journal:
    """Inserts, replaces and erases nodes of `graph`, and undoes all of it on `undo()`.

    Nothing else may change the graph between a change and its undoing.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._undo: list[Callable[[], None]] = []

    def insert(
        self, before: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Node:
        """A call of `target` right before the node `before`."""
        last = before.prev
        inputs: list[fx.Node] = []
        fx.map_arg((args, kwargs), inputs.append)
        orders = _orders_of_users(inputs)

        def undo() -> None:
            while before.prev is not last:
                self._graph.erase_node(before.prev)
            _restore(orders)

        self._undo.append(undo)
        with self._graph.inserting_before(before):
            return self._graph.call_function(target, args, kwargs)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Make every user of `old` use `new`."""
        before = [(user, user.args, user.kwargs) for user in old.users]
        orders = _orders_of_users(node for user in old.users for node in user.all_input_nodes)

        def undo() -> None:
            for user, args, kwargs in before:
                if old not in user.all_input_nodes:
                    user.args, user.kwargs = args, kwargs
                    self._tell("_replace_hooks", old=new, new=old.name, user=user)
            _restore(orders)

        self._undo.append(undo)
        old.replace_all_uses_with(new)

    def erase(self, node: fx.Node) -> None:
        """Remove a node that has no users."""
        after, args, kwargs = node.next, node.args, node.kwargs
        orders = _orders_of_users(node.all_input_nodes)

        def undo() -> None:
            if node._erased:
                _link(node, after)
                node.args, node.kwargs = args, kwargs
                self._tell("_create_node_hooks", node)
            _restore(orders)

        self._undo.append(undo)
        self._graph.erase_node(node)

    def __len__(self) -> int:
        """How many changes were made; pass it to `undo` to return to this point."""
        return len(self._undo)

    def undo(self, changes: int = 0) -> None:
        """Undo every change but the first `changes`, last one first."""
        while len(self._undo) > changes:
            self._undo.pop()()

    def _tell(self, hooks: str, *args: object, **kwargs: object) -> None:
        """Notify the listeners of the module's graph of a change that FX has no call for."""
        for hook in getattr(self._graph.owning_module, hooks, ()):
            hook(*args, **kwargs)


def _orders_of_users(nodes: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    return {node: list(node.users) for node in nodes}


def _restore(orders: dict[fx.Node, list[fx.Node]]) -> None:
    """Setting a node's arguments moves it to the end of its inputs' users; a node whose creation failed stays there."""
    for node, users in orders.items():
        for user in node.users.keys() - set(users):
            del node.users[user]
        for user in users:
            node.users[user] = node.users.pop(user)


def _link(node: fx.Node, before: fx.Node) -> None:
    """Put an erased node back; FX itself only makes new ones, and plans of other sites refer to this one."""
    graph = node.graph
    node._prev = node._next = node  # otherwise removing it from its old place would break the list there
    before.prepend(node)
    node._erased = False
    graph._len += 1
    graph._find_nodes_lookup_table.insert(node)
