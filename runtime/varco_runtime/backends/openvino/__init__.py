"""OpenVINO: x86 processors, and Intel's GPUs and NPUs."""
