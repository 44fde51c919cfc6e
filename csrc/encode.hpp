// What kernels are told of rows to be measured or encoded (docs/cachecard.md 4, `packed`): the
// checked form of kernels/encode.py.
#pragma once

#include "decode.hpp"

struct Source : Numbers {
    uint8_t *mean;            // to: of each head a step, float32, then of all int8 codes; or null
    const uint8_t *widths;    // [heads * tokens]; to encode
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
    /* Number i of float32 rows with number i + dim / 2, in place. */ \
    void rotate(const Numbers &rows); \
    }
FOR_EACH_ISA(DECLARE)
#undef DECLARE
