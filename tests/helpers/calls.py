"""A piece of code is watched for the operators of PyTorch that it calls."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class Called(TorchDispatchMode):
    """Counts the calls of an operation of PyTorch."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.count = operation, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function.overloadpacket is self.operation
        return function(*arguments, **(keywords or {}))
