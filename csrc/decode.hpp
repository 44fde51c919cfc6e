// What kernels are told of rows to be decoded (docs/cachecard.md 4, `packed`): the checked form of
// kernels/parts.py.
#pragma once

#include "isa.hpp"
#include "levels.hpp"
#include "span.hpp"

#include <cstddef>
#include <cstdint>

struct Part {
    const uint8_t *codes, *info;  // of tier after tier; a byte a row: 3 bits of tier, 5 of scale
    const float *scales;          // 32
    const float *mean;            // [heads, dim], or null
    const float *cos, *sin;       // [tokens, dim / 2], or null
    int64_t heads, tokens, nbytes;  // bytes of codes
    int dim;                      // m * h, m odd and h a power of two up to 256
    void *numbers = nullptr;      // [heads, tokens, dim]; heads are `apart` numbers apart
    int64_t apart = 0;
    bool bfloat16 = false;        // else float32
    const float *dct = nullptr;   // [m, m]
};

// The sum of rows' widths, in bits a number, of their bytes.
int64_t widths(Span info);

// A part that is what it says it is, as far as its rows go. Raises ValueError.
Part checked_part(int dim, Span codes, Span info, Span scales, Span mean, Span cos, Span sin,
                  int64_t heads, int64_t tokens);

constexpr int MOST_DIM = 4096;
inline constexpr float ZEROS[MOST_DIM] = {};  // a mean that is none

// Bytes of memory that rows of `dim` numbers are decoded in: two rows of float32, codes of a block, and
// levels of a block of each tier.
constexpr size_t decode_space(int dim) {
    return size_t(8 * eights(dim) + 17 * (BLOCK * eights(dim) + 64));
}

#define DECLARE(isa) \
    namespace isa { \
    /* False if `info` asks for more codes than there were when it was counted. */ \
    bool decode(const Part &part, char *space); \
    }
FOR_EACH_ISA(DECLARE)
#undef DECLARE
