"""What exists for speed alone, behind plain functions and one switch.

With :data:`enabled` false, everything here computes the same plainly: with PyTorch's own operations, in the usual
layout, and without recording. So do the quantizer of activations (:mod:`..quantization.fake_quantize`) and the norms of
a teacher that is observed (:mod:`..losses.batchnorm`). All of them look at it in each call.
"""

import os

enabled: bool = os.environ.get("NNI_AUTORECON_ACCEL") != "0"
"""The switch. The environment variable NNI_AUTORECON_ACCEL=0 turns it off for a process."""
