"""onnxruntime runs the ONNX files that ``export_onnx`` wrote."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, one_line
from ..files import parse_json
from .description import Description
from .saved_network import SavedNetwork

INPUT, OUTPUT = "images", "logits"
METADATA = "nni-autorecon"
"""The metadata of the model hold its description, as JSON, under this key."""


class OnnxNetwork(nn.Module):
    """A module that runs the bytes of an ONNX file on the CPU, with as many threads as PyTorch uses.

    what, remedy: the name of the network in errors, and the advice that they end with.
    Raises InputError if onnxruntime is missing or refuses the content.
    """

    def __init__(self, content: bytes, what: str, remedy: str) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError("ONNX needs onnxruntime; pip install 'nni-autorecon[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # log errors only, which it raises anyway
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no class of their own
            reason = " ".join(str(error).split())
            fault = f"onnxruntime {onnxruntime.__version__} refuses {what}: {reason.rstrip('.')}"
            raise InputError(f"{fault}; {remedy}") from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, K]. images: float32 [N, C, H, W], normalized."""
        return torch.from_numpy(self.session.run([OUTPUT], {INPUT: images.numpy()})[0])


def load_onnx(path: str | Path) -> SavedNetwork:
    """Load the network that ``export_onnx`` wrote.

    Raises InputError if the file is missing, damaged, or not written by ``export_onnx``, or if onnxruntime is missing.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    network = OnnxNetwork(content, str(path), "give a file of nni-autorecon to-onnx")
    if METADATA not in network.metadata:
        raise InputError(f"{path} was not written by nni-autorecon; give a file of nni-autorecon to-onnx")
    try:
        known = parse_json(network.metadata[METADATA])
        description, float_bytes = Description.from_dict(known["description"]), int(known["float_bytes"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path} has a wrong description ({one_line(error)}); write it again with to-onnx") from error
    return SavedNetwork(network, description, float_bytes, len(content))
