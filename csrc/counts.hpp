// The nearest level of each number of a row (docs/cachecard.md 4, `packed`): how many of the midpoints
// between levels it is above.
#pragma once

#include "levels.hpp"
#include "simd.hpp"

namespace ISA {
namespace {

// Midpoints are halves of whole numbers, so a number is above one if twice the number, rounded up, is
// above twice the midpoint: 16 bits are compared. The one in the middle is 0. Of the others as many
// are below it as above: so magnitudes are compared, with half as many.
template <int TIER> struct Limits {
    static constexpr int MIDDLE = (1 << BITS[TIER]) / 2 - 1;
    int16_t up[MIDDLE + 1] = {}, down[MIDDLE + 1] = {};
    constexpr Limits() {
        for (int n = 0; n < MIDDLE; n++) {
            up[n] = int16_t(level<TIER>(MIDDLE + 1 + n) + level<TIER>(MIDDLE + 2 + n));
            down[n] = int16_t(-level<TIER>(MIDDLE - n) - level<TIER>(MIDDLE - 1 - n));
        }
    }
};

// Twice the numbers, rounded up, within 4096 either way; what is no number is below all.
inline Ints doubled(Floats numbers) {
    const Floats far = Floats{} + 4096.0f;
    numbers += numbers;
    numbers = numbers > -far ? numbers : -far;
    numbers = numbers < far ? numbers : far;
    const Ints down = __builtin_convertvector(numbers, Ints);
    return down - (__builtin_convertvector(down, Floats) < numbers);
}

// The even lanes of both, which are the lower halves of wider ones.
template <class T, class Wide> V<T> narrowed(Wide a, Wide b) {
    return pick<T, Runs<T, 1, LANES<T>, 0>>((V<T>)a, (V<T>)b);
}

template <int TIER> Shorts counts(Shorts size) {
    constexpr Limits<TIER> limits;
    constexpr int middle = limits.MIDDLE;
    const Shorts positive = size > 0;
    // Of a number that is not above 0 its magnitude and one: it is above a midpoint that it equals.
    size = positive ? size : int16_t(1) - size;
    Shorts total{};
    for (int n = 0; n < middle; n++) {
        Shorts limit = Shorts{} + limits.up[n];
        if (limits.up[n] != limits.down[n]) limit = positive ? limit : Shorts{} + limits.down[n];
        total -= size > limit;  // -1 where it is
    }
    return positive ? total + int16_t(middle + 1) : int16_t(middle) - total;
}

template <int TIER> void code_row(const float *row, float scale, int dim, uint8_t *codes) {
    constexpr int F = LANES<float>;
    float last[BYTES];
    uint8_t found[BYTES];
    for (int at = 0; at < dim; at += BYTES) {
        const bool whole = at + BYTES <= dim;
        for (int n = 0; !whole && n < BYTES; n++) last[n] = at + n < dim ? row[at + n] : 0;
        const float *from = whole ? row + at : last;
        Shorts half[2];
        for (int n = 0; n < 2; n++)
            half[n] = counts<TIER>(narrowed<int16_t>(doubled(load(from + 2 * n * F) * scale),
                                                     doubled(load(from + (2 * n + 1) * F) * scale)));
        const Bytes all = narrowed<uint8_t>(half[0], half[1]);
        store<uint8_t>(whole ? codes + at : found, all);
        for (int n = 0; !whole && at + n < dim; n++) codes[at + n] = found[n];
    }
}

// Eight bits have equal steps, of 8, from -1016 on: no search, and exact.
template <> void code_row<7>(const float *row, float scale, int dim, uint8_t *codes) {
    for (int i = 0; i < dim; i++) {
        const float step = __builtin_ceilf(row[i] * scale * 0.125f) + 127.0f;
        const float above = step > 0 ? step : 0;
        codes[i] = uint8_t(int32_t(above < 255 ? above : 255));
    }
}

}  // namespace
}  // namespace ISA
