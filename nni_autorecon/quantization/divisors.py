"""Divisors, and what enters a root or a logarithm, are found here: they stay in floating point.

A small value that is rounded to 0 makes a quotient infinite, and the gradient of a root is infinite there, too.
"""

from __future__ import annotations

import math
import re

from torch import Tensor, fx

from .calls import called
from .operators import BENDING, SCALING, SIZES, moves_values
from .pointwise import PointwiseActivation

DIVISION = re.compile("i?(true|floor)?div(ide)?|(true|floor)divide")
SINGULAR = re.compile("r?sqrt|reciprocal|log|log2|log10")
"""These functions, or their gradients, are infinite at 0."""
POWER = re.compile("i?pow")
IN_PROPORTION = re.compile(
    rf"{SCALING.pattern}|i(add|sub|mul|truediv)|{BENDING.pattern}|square|{SINGULAR.pattern}|i?pow"
)
"""Elementwise functions of these names make values near 0 of values near 0."""
REDUCTION = re.compile("mean|sum|(adaptive)?(avg|max)pool[123]d|a?(max|min)|median|topk|sort")
"""These make one of several values, which is near 0 only if most of them are."""


def divisors(traced: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values are divided by, or what is made of each of them, or of all of them alone."""
    found: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        if node.op == "placeholder" or called(traced, node)[1] in SIZES:
            continue
        if dividing_users(traced, node, found) or (node.users and is_only_divisor(traced, node, found)):
            found.add(node)
    return found


def is_only_divisor(traced: fx.GraphModule, node: fx.Node, found: set[fx.Node]) -> bool:
    """Return True if a node is of no other use than to divide by. found: the :func:`divisors` behind it."""
    reductions = {user for user in node.users if user in found and REDUCTION.fullmatch(called(traced, user)[1])}
    return reductions.union(dividing_users(traced, node, found)).issuperset(node.users)


def dividing_users(traced: fx.GraphModule, node: fx.Node, found: set[fx.Node]) -> set[fx.Node]:
    """Return the users that divide by a node's values, or by what they make of each. found: the :func:`divisors`."""

    def keeps_zeros(user: fx.Node) -> bool:
        kind = called(traced, user)[1]
        return not REDUCTION.fullmatch(kind) and bool(IN_PROPORTION.fullmatch(kind) or moves_values(traced, user))

    return {user for user in node.users if node is divided_by(traced, user) or (user in found and keeps_zeros(user))}


def divided_by(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return the computed values by which a call divides, or of which it takes a root or a logarithm; None if none."""
    module, kind = called(traced, node)
    operand: object = None
    if DIVISION.fullmatch(kind):
        operand = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    elif SINGULAR.fullmatch(kind) or (POWER.fullmatch(kind) and not _exponent(traced, node) >= 1):
        operand = node.args[0] if node.args else next(iter(node.all_input_nodes), None)
    elif isinstance(module, PointwiseActivation) and isinstance(module.function, fx.GraphModule):
        (argument,) = (each for each in module.function.graph.nodes if each.op == "placeholder")
        users = dividing_users(module.function, argument, divisors(module.function))
        operand = node.args[0] if users.issuperset(argument.users) else None
    return operand if isinstance(operand, fx.Node) and operand.op != "get_attr" else None


def _exponent(traced: fx.GraphModule, node: fx.Node) -> float:
    """Return the exponent of a power if it is a number or a parameter, else NaN."""
    exponent: object = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
    if isinstance(exponent, fx.Node) and exponent.op == "get_attr":
        owner, _, name = str(exponent.target).rpartition(".")
        exponent = getattr(traced.get_submodule(owner), name)
    if isinstance(exponent, Tensor):
        return exponent.min().item()
    return exponent if isinstance(exponent, (int, float)) else math.nan
