// What the stub libraries share. It is implemented in runtime.cc, which the others link to.
//
// NVIDIA's headers are not used: the few types that matter are written down where they are filled.
#pragma once

#include <cstddef>

extern "C" {

// Begins a section of the log. Called by the tests through ctypes.
void stub_mark(const char *section);

// One line of the log: its kind, whether a capture is under way, and fields, with tabs between.
void stub_log(const char *kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

// The compute capability, 90 for 9.0, and the device's memory.
int stub_capability();
std::size_t stub_free_bytes();
std::size_t stub_total_bytes();
}

constexpr int SUCCESS = 0;
constexpr int CUDA_VERSION = 13000;
