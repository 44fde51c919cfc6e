// What attention does with vectors of float32, besides simd.hpp: bfloat16 to float32, a * b + c, sums.
#pragma once
#include "simd.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ISA {
namespace {

constexpr int WIDE = LANES<float>;
constexpr int ROWS = 4, AT_ONCE = WIDE == 4 ? 2 : WIDE / 4;  // sums that fit the registers

// Bfloat16 are the upper halves of float32.
inline Floats load(const uint16_t *from) {
#if defined(__AVX512BW__)
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    // The plain form of it makes GCC 12 warn of what it leaves open.
    return Floats(Ints(_mm512_maskz_cvtepu16_epi32(0xFFFF, halves)) << 16);
#elif defined(__AVX2__)
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    return Floats(Ints(_mm256_cvtepu16_epi32(halves)) << 16);
#else
    typedef uint16_t Halves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
    return Floats(__builtin_convertvector(*reinterpret_cast<const Halves *>(from), Ints) << 16);
#endif
}

inline Floats all(float number) { return number - Floats{}; }

// a · b + c, rounded once where the processor can.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512BW__)
    return Floats(_mm512_fmadd_ps(__m512(a), __m512(b), __m512(c)));
#elif defined(__AVX2__)
    return Floats(_mm256_fmadd_ps(__m256(a), __m256(b), __m256(c)));
#elif defined(__aarch64__)
    return Floats(vfmaq_f32(float32x4_t(c), float32x4_t(a), float32x4_t(b)));
#else
    return a * b + c;
#endif
}

inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }  // b where one is no number
inline Floats sum(Floats a, Floats b) { return a + b; }

// Index bit BIT of numbers exchanged with the one that tells two vectors apart.
template <int BIT> void exchange(Floats &a, Floats &b) {
    shuffle<float, Runs<float, BIT, 2 * BIT, 0>, Runs<float, BIT, 2 * BIT, 1>>(a, b);
}

// Number j of vector i becomes number i of vector j.
template <int BIT = 1> void transpose(Floats (&x)[WIDE]) {
    for (int i = 0; i < WIDE; i++)
        if (!(i & BIT)) exchange<BIT>(x[i], x[i | BIT]);
    if constexpr (2 * BIT < WIDE) transpose<2 * BIT>(x);
}

// The sum of vector i as number i; x is used up.
template <int BIT = 1> Floats sums(Floats *x) {
    for (int i = 0; 2 * i * BIT < WIDE; i++) {
        exchange<BIT>(x[2 * i], x[2 * i + 1]);
        x[i] = x[2 * i] + x[2 * i + 1];
    }
    if constexpr (2 * BIT < WIDE) return sums<2 * BIT>(x);
    else return x[0];
}

// All numbers of a vector put together by `both`, which is the same in either order.
template <Floats both(Floats, Floats), int BIT = 1> float folded(Floats x) {
    Floats other = x;
    exchange<BIT>(x, other);
    x = both(x, other);
    if constexpr (2 * BIT < WIDE) return folded<both, 2 * BIT>(x);
    else return x[0];
}

}  // namespace
}  // namespace ISA
