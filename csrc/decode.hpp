// What kernels are told of rows to be decoded (docs/cachecard.md 4, `packed`): the checked form of
// kernels/parts.py.
#pragma once

#include "isa.hpp"
#include "levels.hpp"
#include "span.hpp"

#include <cstddef>
#include <cstdint>

// Numbers of a layer's keys or values, in a cache or to be put there.
struct Numbers {
    void *numbers;                // [heads, tokens, dim]; heads are `apart` numbers apart
    bool bfloat16;                // else float32
    int64_t heads, tokens, apart;
    int dim;                      // m * h, m odd and h a power of two up to 256
    const float *cos, *sin;       // [tokens, dim / 2], or null
    const float *dct;             // [m, m]
};

struct Part : Numbers {
    const uint8_t *codes, *info;  // of tier after tier; a byte a row: 3 bits of tier, 5 of scale
    const float *scales;          // 32
    const float *mean;            // [heads, dim], or null
    int64_t nbytes;               // of codes
};

// The sum of rows' widths, in bits a number, of their bytes.
int64_t widths(Span info);

// Rows of `numbers`. Raises ValueError where they are not what they say they are.
Part checked_part(const Numbers &numbers, Span codes, Span info, Span scales, Span mean);

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
