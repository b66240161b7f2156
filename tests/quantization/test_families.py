"""One network of each family of timm and torchvision: traced, quantized by both protocols, and by DFQ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.sources import architecture
from tests.helpers.toys import relative_error

IMAGE = ImageShape(3, 64, 64)
TIMM = (
    *("cs3darknet_s", "darknet17", "efficientnet_b0", "tf_efficientnet_lite0", "ese_vovnet19b_dw", "fbnetc_100"),
    *("ghostnet_100", "hardcorenas_a", "hgnetv2_b0", "lcnet_050", "mixnet_s", "mobilenetv3_large_100"),
    *("mobilenetv4_conv_small", "regnety_004", "repvgg_a0", "resnest14d", "resnet18", "rexnet_100", "skresnet18"),
    *("starnet_s1", "tinynet_e"),
)
TORCHVISION = ("mnasnet0_5", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5")
NETWORKS = (*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION))


def noise(count: int) -> Tensor:
    return F.avg_pool2d(torch.randn(count, *IMAGE) + torch.randn(count, 3, 1, 1) / 2, 3, 1, 1) * 2


def with_statistics(name: str) -> nn.Module:
    """Random weights, and BatchNorm statistics of smooth noise."""
    torch.manual_seed(0)
    network = architecture(name, 10).train()
    with torch.no_grad():
        for _ in range(2):
            network(noise(4))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_one_network_of_each_family(name: str) -> None:
    network = with_statistics(name)
    graph, images = trace(network, remedy="mend it", image=IMAGE), noise(4)
    expected = network(images)
    torch.testing.assert_close(graph(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    for protocol in ("activations", "integer"):
        student, coverage = quantize_network(graph, Quantization("w8a8", protocol=protocol))
        assert not coverage.gaps
        with observe_ranges(student):
            found = student(images)
        assert relative_error(found, expected) < 0.2
    student, _ = dfq(graph, IMAGE, Quantization("w8a8"))
    assert student(images).isfinite().all()
