"""This package holds the code that exists for speed alone, behind plain functions and one switch.

If :data:`enabled` is false, everything here computes the same values plainly: with PyTorch's own operations, in the
usual layout, and without recording. The quantizer of activations (:mod:`..quantization.fake_quantize`) and the norms of
an observed teacher (:mod:`..losses.batchnorm`) obey the switch too. All of them read it in each call.
"""

import os

enabled: bool = os.environ.get("NNI_AUTORECON_ACCEL") != "0"
"""The switch is on unless the environment variable NNI_AUTORECON_ACCEL is 0 when the process starts."""
