// Reconstruction levels: docs/cachecard.md 4, `packed`; kernels/levels.py says where they are from.
#pragma once

#include <cstdint>

constexpr int BLOCK = 32;  // rows that are packed as one
constexpr int BITS[8] = {0, 1, 2, 3, 4, 5, 6, 8};  // of a tier
struct Cubic {
    int16_t a, b, k, s;
};
constexpr Cubic CUBICS[8] = {{0, 0, 0, 0},   {204, 0, 0, 0},  {115, 13, 3, 0}, {61, 23, 6, 0},
                             {32, 1, 4, 0},  {64, 11, 8, 2},  {246, 7, 7, 5},  {4, 0, 0, 0}};

// In 1/256 of a row's mean square root; all products fit 16 bits.
template <int TIER> constexpr int16_t level(int16_t code) {
    constexpr Cubic c = CUBICS[TIER];
    const int16_t u = int16_t(2 * code - ((1 << BITS[TIER]) - 1));
    const int16_t slope = int16_t(c.a + (int16_t(u * u * c.b) >> c.k));
    return int16_t(int16_t(u * slope + ((1 << c.s) >> 1)) >> c.s);
}

// Call `f` with `tier`, 1 to 7, as a constant; tier 0 has no codes.
template <class F> void of_tier(int tier, F f) {
    switch (tier) {
        case 1: return f.template operator()<1>();
        case 2: return f.template operator()<2>();
        case 3: return f.template operator()<3>();
        case 4: return f.template operator()<4>();
        case 5: return f.template operator()<5>();
        case 6: return f.template operator()<6>();
        case 7: return f.template operator()<7>();
    }
}

// Codes of a row: `dim` rounded up to a multiple of 8.
constexpr int64_t eights(int64_t dim) { return (dim + 7) / 8 * 8; }
