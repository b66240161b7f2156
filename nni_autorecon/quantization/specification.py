"""One value says how a network is quantized, from the flag to the file: bit widths, protocol and ranges."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ..errors import InputError, shown
from .ranges import RANGES

PROTOCOLS = {
    "activations": "the outputs of activation functions, as GDFQ does",
    "integer": "all that an integer engine stores",
}
"""Each protocol says what is quantized beside weights (see :mod:`.insertion`)."""
FORMER_NAMES = {"gdfq": "activations"}
"""Names that protocols had in earlier files and settings; they are still read."""
INPUT_BITS = 8
"""Bits of the network input in protocol ``integer``, unless others are asked for."""
STORED_BITS = 8
"""Bits of what is stored in protocol ``integer`` but is no factor of any product."""


class Bits(str):
    """Bit widths of weights and activations, from 2 to 8 each, written as in ``w4a8``; a string in files and tables.

    Args:
        text: The two widths, in bits.

    Raises:
        InputError: If it is any other text.

    Example:
        >>> Bits("w4a8").activations
        8
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Bits:
        if not isinstance(text, str) or not re.fullmatch(r"w[2-8]a[2-8]", text):
            raise InputError(f"bits {shown(text)} are not understood; write them as w4a8, with 2 to 8 bits each")
        return super().__new__(cls, text)

    @property
    def weights(self) -> int:
        """Return the bits of a weight."""
        return int(self[1])

    @property
    def activations(self) -> int:
        """Return the bits of an activation."""
        return int(self[3])


class Size(str):
    """The size of a file, written as in ``1.5MB``; a string in files and tables. Units are powers of ten.

    Raises InputError for any other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Size:
        if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})? ?(B|kB|MB)", text):
            raise InputError(f"size {shown(text)} is not understood; write it as 1.5MB, in B, kB or MB")
        return super().__new__(cls, text)

    @property
    def bytes(self) -> int:
        """Return the number of whole bytes."""
        number = self.rstrip("BkM ")
        return int(Decimal(number) * {"B": 1, "kB": 10**3, "MB": 10**6}[self[len(number) :].strip()])


@dataclass(frozen=True)
class Quantization:
    """The settings by which :func:`~.insertion.quantize_network` quantizes a network.

    ``first_bits`` and ``last_bits`` hold for the weights of the first and of the last layer and, in protocol
    ``integer``, for the last layer's input; None means ``bits``. ``layer_bits`` hold for the weights of the layers that
    it names by their paths, but for those two. ``input_bits`` hold for the network input in protocol
    ``integer``; None means 8. ``weight_ranges`` and ``activation_ranges`` name functions of :data:`~.ranges.RANGES`.
    With ``allow_partial``, parts that cannot be quantized are listed and left as they are.

    Raises InputError for an unknown protocol or range, for input bits in protocol ``activations``, and unless a layer's
    bits are 2 to 8.
    """

    bits: Bits
    protocol: str = "activations"
    input_bits: int | None = None
    first_bits: int | None = None
    last_bits: int | None = None
    weight_ranges: str = "minmax"
    activation_ranges: str = "minmax"
    allow_partial: bool = False
    layer_bits: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", Bits(self.bits))
        object.__setattr__(self, "protocol", FORMER_NAMES.get(self.protocol, self.protocol))
        if self.protocol not in PROTOCOLS:
            raise InputError(f"protocol {self.protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
        for ranges in (self.weight_ranges, self.activation_ranges):
            if ranges not in RANGES:
                raise InputError(f"ranges {ranges!r} are unknown; choose one of {', '.join(RANGES)}")
        if self.protocol == "activations" and self.input_bits is not None:
            raise InputError("protocol activations leaves the network input as it is; leave out input_bits")
        for path, bits in (self.layer_bits or {}).items():
            if type(bits) is not int or not 2 <= bits <= 8:
                raise InputError(f"{shown(bits)} bits of layer {path} are not supported; choose 2 to 8")

    def to_dict(self) -> dict[str, Any]:
        """Return the names and values, as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Quantization:
        """Read the output of :meth:`to_dict`, or the keyword arguments that files of format 1 hold.

        Raises InputError, TypeError or KeyError for anything else.
        """
        values = dict(values)
        if "weight_bits" in values:
            values["bits"] = f"w{values.pop('weight_bits')}a{values.pop('activation_bits')}"
        return cls(**values)
