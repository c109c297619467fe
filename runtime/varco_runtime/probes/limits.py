"""How large an error of an acceptance probe may be, by number format, and where these limits come from."""

from __future__ import annotations

# Measured by `benchmarks/probe_limits.py` on x86: the trained varco-tiny, and six random checkpoints of 2 to 12 layers,
# three of them gentle (as trained weights are), three wild (each layer amplifies errors); besides, a tower of 26
# layers, the widths of the 0.5B, and a trained language model of 135 million parameters. RESULTS.md has the figures.
#
# Where a type rounds on a device: the largest error of a good bundle; the least error of one with a transposed or
# exchanged weight where it is broken; the limit, which leaves room for other devices and deeper models (fp32: the TF32
# of a GPU; int8 vision: 26 layers). bf16 has not been measured: it rounds 8 times as coarsely as fp16.
#
#                                 good: trained   gentle    wild      broken     limit
#     features, fp16                    6e-4      1.3e-3    1.3e-3     0.4       2e-2
#     features, int8                    4e-2      3e-2      4e-2       0.4       2e-1
#     logits, fp16 arithmetic           7e-4      1.2e-3    8.7e-3     0.2       1.5e-2
FEATURE_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}
LOGIT_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 1.5e-2, "bf16": 8e-2}
FORMATS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

# Where a CPU computes in fp32 and nothing is rounded on the way. Good bundles: features 4e-7 to 2e-6; logits 3e-7 to
# 3e-5, which is 0.3 to 0.7 of what a disturbance of a part in a million does to the same model. The exact GELU for the
# one by tanh: 9e-5 of features in two layers.
TIGHT_FEATURE_LIMIT = 5e-5
TIGHT_LOGIT_LIMIT = 3e-5
ARITHMETIC_FACTOR = 10.0
"""How many times what a disturbance of a part in a million does to a model its arithmetic may."""
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""How far a number of a type may lie from what it stands for, relative to it."""
COARSE_FACTOR = 2.0
"""How many times what the rounding of a type does, reckoned from the disturbance, a device that computes in it may."""

NOISE_FACTOR = 1.5
"""How many times what rounding inputs does to a model a device may differ that rounds in its own way. Seen: 1.0 to 1.2.
"""
MAX_LOGIT_LIMIT = 1.2
"""Logits that have nothing to do with the expected ones differ by more."""
FORMER_NOISE_FACTOR, FORMER_MAX_NOISE = 2.0, 0.25
"""For files of version 1."""

FAIR_KL, COARSE_KL = 0.03, 0.15
"""Nats per token from which a format is called fair, and coarse. Seen in the trained model of 135 million parameters:
int8 weights and inputs 0.003, and another token first at 3 % of positions; the fast recipe 0.39, and 27 %."""
