"""Helpers read the calls in a traced graph."""

from __future__ import annotations

from torch import fx, nn

QUANTIZED = (nn.Conv2d, nn.Linear)
"""Layers of these classes have quantized weights, and a traced graph shows each as one call."""
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def called(traced: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | None, str]:
    """Return the module that a node calls, or None, and the name of its class, of the function or of the method.

    The class is that of ``torch.nn`` if a person has derived another one from it. The name is in lower case and has no
    "_", as in ``maxpool2d``. A node that calls nothing has the name of its operation, such as ``placeholder``.
    """
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else node.op)
    if module is not None:
        known = (kind for kind in type(module).__mro__[:-2] if kind.__module__.startswith("torch.nn."))
        name = next(known, type(module)).__name__
    return module, str(name).lower().replace("_", "")


def child_name(node: fx.Node) -> str:
    """Return the name of a node, for a module that belongs to it; modules have attributes such as ``to`` already."""
    return f"{node.name}_" if hasattr(nn.Module, node.name) else node.name
