"""How large an error of an acceptance probe may be, by number format, and where these limits come from."""

from __future__ import annotations

# Measured by `benchmarks/probe_limits.py` with onnxruntime 1.31 on x86: the trained varco-tiny, and six random
# checkpoints of 2 to 12 layers, three of them gentle (as trained weights are), three wild (each layer amplifies
# errors). The largest error of a good bundle; the least error of a broken one where it is broken; the limit, which
# leaves room for other devices and deeper models (FP32: the TF32 of a GPU; int8 vision: 26 layers). bf16 has not been
# measured: it rounds 8 times as coarsely as fp16.
#
#                                 good: trained   gentle    wild      broken     limit
#     features, fp32                    2e-6      1e-6      1e-6       0.4       5e-3
#     features, fp16                    6e-4      1.3e-3    1.3e-3     0.4       2e-2
#     features, int8                    4e-2      3e-2      3e-2       0.4       2e-1
#     logits, fp32 arithmetic           3e-6      5e-7      4e-6       1.8e-2    5e-3
#     logits, fp16 arithmetic           7e-4      1.2e-3    8.7e-3     0.2       1.5e-2
#     logits, rounded inputs, in noise  1.1       1.2       1.4        3.0       2
#     KL, fp32                          5e-8      3e-13     6e-11                1e-5
#     KL, fp16                          5e-7      1.3e-6    2.5e-4               1e-3
#     KL, int8                          1.7e-4    1.2e-4    8e-2                 3e-2
#     KL, int4                          2.2e-2    1.8e-2    3.2                  5e-1
#
# Rounding the inputs of linears (int8, FP8) is noise whose size depends on the model, and each kernel rounds in its own
# way: so the limit is a multiple of what the exporter found such rounding to do to this model (`Probes.noise`). KL says
# whether the format suits the model; wild weights are no reason to let an int4 of KL 3 pass.
FEATURE_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}
LOGIT_LIMITS: dict[str, float] = {"fp32": 5e-3, "fp16": 1.5e-2, "bf16": 8e-2}
NOISE_FACTOR = 2.0
MAX_NOISE = 0.25
"""Of a model that rounding disturbs more than this, no logit could be trusted: its limit grows no further."""
KL_LIMITS: dict[str, float] = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 5e-2, "int8": 3e-2, "fp8": 5e-1, "int4": 5e-1}
