// Levels of codes (docs/cachecard.md 4, `packed`), in vectors: looked up where the processor has an
// instruction for it.
#pragma once

#include "levels.hpp"
#include "simd.hpp"

#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

namespace ISA {
namespace {

// All levels of a tier, again and again: bits above a code's do not count.
template <class T, int TIER, int COUNT, int SHIFT> struct Table {
    T at[COUNT];
    constexpr Table() : at() {
        for (int i = 0; i < COUNT; i++) at[i] = T(level<TIER>(i & ((1 << BITS[TIER]) - 1)) >> SHIFT);
    }
};
template <class T, int TIER, int COUNT, int SHIFT = 0>
alignas(64) constexpr Table<T, TIER, COUNT, SHIFT> TABLE{};

// Bytes to numbers of 16 bits, low bytes and high ones: those of the lower halves of all quarters,
// then the others.
inline void widen(Bytes low, Bytes high, Shorts &first, Shorts &second) {
    first = (Shorts)pick<uint8_t, Turns<uint8_t, 0>>(low, high);
    second = (Shorts)pick<uint8_t, Turns<uint8_t, 1>>(low, high);
}

#if defined(__AVX512BW__)
template <int TIER> void look_up(Bytes codes, Shorts &first, Shorts &second) {
    widen(codes, Bytes{}, first, second);
    for (Shorts *at : {&first, &second}) {
        const __m512i index = (__m512i)*at;
        if constexpr (BITS[TIER] == 8) {
            *at = (*at + *at - int16_t(255)) * CUBICS[TIER].a;  // uniform
        } else {
            constexpr const int16_t *table = TABLE<int16_t, TIER, 64>.at;
            const __m512i low = _mm512_load_si512(table), high = _mm512_load_si512(table + 32);
            *at = (Shorts)(BITS[TIER] < 6 ? _mm512_permutexvar_epi16(index, low)
                                          : _mm512_permutex2var_epi16(low, index, high));
        }
    }
}
#else
template <int TIER> Shorts computed(Shorts codes) {
    constexpr Cubic c = CUBICS[TIER];
    const Shorts u = codes + codes - int16_t((1 << BITS[TIER]) - 1);
    Shorts slope = Shorts{} + c.a;
    if (c.b) slope += u * u * c.b >> c.k;
    return (u * slope + int16_t((1 << c.s) >> 1)) >> c.s;
}

#if defined(__AVX2__) || defined(__ARM_NEON)
inline Bytes sixteen(const uint8_t *table, Bytes codes) {
#if defined(__AVX2__)
    const __m256i both = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
    return (Bytes)_mm256_shuffle_epi8(both, (__m256i)codes);
#else
    return (Bytes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)codes);
#endif
}
#endif

template <int TIER> void look_up(Bytes codes, Shorts &first, Shorts &second) {
#if defined(__AVX2__) || defined(__ARM_NEON)
    if constexpr (BITS[TIER] <= 4) {
        widen(sixteen(TABLE<uint8_t, TIER, 16, 0>.at, codes),
              sixteen(TABLE<uint8_t, TIER, 16, 8>.at, codes), first, second);
        return;
    }
#endif
    widen(codes, Bytes{}, first, second);
    first = computed<TIER>(first);
    second = computed<TIER>(second);
}
#endif

}  // namespace
}  // namespace ISA
