// What kernels are told of rows to be measured or encoded (docs/cachecard.md 4, `packed`): the
// checked form of kernels/encode.py.
#pragma once

#include "decode.hpp"

struct Source {
    const void *numbers;      // [heads, tokens, dim]; heads are `apart` numbers apart
    bool bfloat16;            // else float32
    int64_t heads, tokens, apart;
    int dim;                  // m * h, m odd and h a power of two up to 256
    const float *cos, *sin;   // [tokens, dim / 2], or null
    uint8_t *mean;            // to: of each head a step, float32, then of all int8 codes; or null
    const uint8_t *widths;    // [heads * tokens]; to encode
    const float *dct;         // [m, m]
    void *out;                // float32 [heads * tokens], or the bytes of a part
};

// Bytes of memory that `measure` and `encode` work in.
inline size_t encode_space(const Source &source) {
    const int64_t rows = source.heads * source.tokens, dim = source.dim;
    return size_t(8 * (rows + dim) + 4 * (rows * dim + source.heads * dim + rows));
}

#define DECLARE(isa) \
    namespace isa { \
    /* Mean squares of rows, of keys without their mean. */ \
    void measure(const Source &source, char *space); \
    /* An exponent of two bytes, a byte a row, and codes. */ \
    void encode(const Source &source, char *space); \
    /* Number i of rows with number i + dim / 2, in place; cosines and sines are [tokens, dim / 2]. */ \
    void rotate(float *rows, int64_t heads, int64_t tokens, int64_t apart, int dim, \
                const float *cos, const float *sin); \
    }
FOR_EACH_ISA(DECLARE)
#undef DECLARE
