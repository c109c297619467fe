// libcublas.so.13, and with BLAS_LT libcublasLt.so.13: products are logged with their sizes and not computed.
//
// Sizes are cuBLAS's own, column by column: a product of rows [n, k] with weights [m, k] has m, n and k.

#include "stub.h"

#include <cstdint>
#include <cstring>

#ifndef BLAS_LT

// Products: all begin with the handle, two transpositions and the sizes.
#define PRODUCT(name)                                                                                                  \
    int name(void *, int, int, int m, int n, int k, ...) {                                                             \
        stub_log("blas", "%s\t%d\t%d\t%d", #name, m, n, k);                                                            \
        return SUCCESS;                                                                                                \
    }

// What no network of ours should need: a line of the log without sizes.
#define OTHER(name)                                                                                                    \
    int name(void *, ...) {                                                                                            \
        stub_log("blas", "%s\t0\t0\t0", #name);                                                                        \
        return SUCCESS;                                                                                                \
    }

extern "C" {

int cublasCreate_v2(void **handle) {
    static int one;
    *handle = &one;
    return SUCCESS;
}

int cublasDestroy_v2(void *) { return SUCCESS; }

int cublasSetStream_v2(void *, void *) { return SUCCESS; }

int cublasSetMathMode(void *, int) { return SUCCESS; }

int cublasGetMathMode(void *, int *mode) {
    *mode = 0;
    return SUCCESS;
}

const char *cublasGetStatusName(int) { return "a status of the stub"; }

const char *cublasGetStatusString(int) { return "a status of the stub"; }

PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)

OTHER(cublasDgeam)
OTHER(cublasDgetrfBatched)
OTHER(cublasDgetriBatched)
OTHER(cublasScopy_v2)
OTHER(cublasSgeam)
OTHER(cublasSgetrfBatched)
OTHER(cublasSgetriBatched)
OTHER(cublasSscal_v2)
}

#else

namespace {

// What a matrix layout was made with.
struct Layout {
    std::uint64_t rows, columns;
};

// CUDA 13's cublasLtMatmulHeuristicResult_t: the first one offered is taken.
struct Heuristic {
    std::uint64_t algorithm[8];
    std::size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

int one_handle(void **handle) {
    static int one;
    *handle = &one;
    return SUCCESS;
}

}  // namespace

#define NOTHING(name)                                                                                                  \
    int name(void *, ...) { return SUCCESS; }

extern "C" {

int cublasLtCreate(void **handle) { return one_handle(handle); }

int cublasLtMatmulDescCreate(void **handle, ...) { return one_handle(handle); }

int cublasLtMatmulPreferenceCreate(void **handle) { return one_handle(handle); }

int cublasLtMatrixTransformDescCreate(void **handle, ...) { return one_handle(handle); }

int cublasLtMatrixLayoutCreate(Layout **layout, int, std::uint64_t rows, std::uint64_t columns, std::int64_t) {
    *layout = new Layout{rows, columns};
    return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(Layout *layout) {
    delete layout;
    return SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, Heuristic *results,
                                   int *count) {
    std::memset(results, 0, sizeof *results);
    *count = 1;
    return SUCCESS;
}

int cublasLtMatmul(void *, void *, const void *, const void *, const Layout *a, const void *, const Layout *,
                   const void *, const void *, const Layout *, void *, const Layout *d, ...) {
    const auto m = d->rows, n = d->columns, k = a->rows * a->columns / m;  // whichever way `a` is transposed
    stub_log("blas", "cublasLtMatmul\t%d\t%d\t%d", static_cast<int>(m), static_cast<int>(n), static_cast<int>(k));
    return SUCCESS;
}

int cublasLtMatrixTransform(void *, ...) {
    stub_log("blas", "cublasLtMatrixTransform\t0\t0\t0");
    return SUCCESS;
}

NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransformDescDestroy)
}

#endif
