// Rotations of rows (docs/cachecard.md 4, `packed`): RoPE, the DCT over the odd part of dim, and
// Walsh-Hadamard transforms in vector registers: sums and differences of each two numbers whose
// indices differ in one bit, for bit after bit.
//
// An index bit says in which vector of a pair a number lies, or in which quarter of a vector, or at
// which place of that. A stage is one sum and one difference of vectors once its bit tells the pair
// apart. The shuffles that bring it there are single instructions, and turn the bits round by one.
#pragma once

#include "simd.hpp"

namespace ISA {
namespace {

constexpr int CHUNK = 64;  // numbers
constexpr int RUN = 32;    // numbers: so many levels, whatever they are, sum up to 16 bits

template <class T> void butterfly(V<T> &a, V<T> &b) {
    const V<T> sum = a + b;
    b = a - b;
    a = sum;
}

// Runs of H numbers of a chunk, H a power of two up to CHUNK. Of each vector pair comes in `x` what
// has index bit 3 zero, then what has it one; all is in order when it leaves. Sums of whole numbers
// are exact, so that their order does not matter.
template <int H> void hadamard(V<int16_t> (&x)[CHUNK / LANES<int16_t>]) {
    using T = int16_t;
    constexpr int L = LANES<T>, N = CHUNK / L, Q = QUARTER / int(sizeof(T));
    for (int apart = N / 2; apart > 1; apart /= 2)
        if (H > apart * L)
            for (int n = 0; n < N; n++)
                if (!(n & apart)) butterfly<T>(x[n], x[n | apart]);
    for (int n = 0; n < N; n += 2) {
        V<T> &a = x[n], &b = x[n + 1];
        for (int bit = Q; bit > 0; bit /= 2) {
            if (H > bit) butterfly<T>(a, b);
            shuffle<T, Turns<T, 0>, Turns<T, 1>>(a, b);
        }
        if constexpr (L > Q)
            for (int bit = 2 * Q; bit <= L; bit *= 2) {
                shuffle<T, Runs<T, Q, L, 0>, Runs<T, Q, L, 1>>(a, b);
                if (H > bit) butterfly<T>(a, b);
            }
    }
}

// Runs of H float32, of `count` in all, in place; stages lowest bit first, since rounding depends on
// their order.
template <int H> void hadamard(float *numbers, size_t count) {
    using T = float;
    constexpr int L = LANES<T>, Q = QUARTER / int(sizeof(T)), GROUP = H > 2 * L ? H : 2 * L, N = GROUP / L;
    for (; count >= GROUP; count -= GROUP, numbers += GROUP) {
        V<T> x[N];
        for (int n = 0; n < N; n++) x[n] = load(numbers + n * L);
        for (int n = 0; n < N; n += 2) {
            V<T> &a = x[n], &b = x[n + 1];
            for (int bit = 1; bit < Q; bit *= 2) {
                shuffle<T, Runs<T, 1, Q, 0>, Runs<T, 1, Q, 1>>(a, b);
                if (H > bit) butterfly<T>(a, b);
            }
            shuffle<T, Runs<T, 1, Q, 0>, Runs<T, 1, Q, 1>>(a, b);
            if constexpr (L > Q) {
                for (int bit = Q; bit < L; bit *= 2) {
                    shuffle<T, Runs<T, Q, L, 0>, Runs<T, Q, L, 1>>(a, b);
                    if (H > bit) butterfly<T>(a, b);
                }
                shuffle<T, Runs<T, Q, L, 0>, Runs<T, Q, L, 1>>(a, b);
            }
        }
        for (int apart = 1; apart < N && H > apart * L; apart *= 2)
            for (int n = 0; n < N; n++)
                if (!(n & apart)) butterfly<T>(x[n], x[n | apart]);
        for (int n = 0; n < N; n++) store<T>(numbers + n * L, x[n]);
    }
    for (int apart = 1; apart < H; apart *= 2)
        for (size_t n = 0; n < count; n++)
            if (!(n & apart)) {
                const float a = numbers[n], b = numbers[n | apart];
                numbers[n] = a + b;
                numbers[n | apart] = a - b;
            }
}

// The same of runs of h numbers, a power of two up to 256.
inline void hadamard(float *numbers, size_t count, int h) {
    switch (h) {
        case 2: return hadamard<2>(numbers, count);
        case 4: return hadamard<4>(numbers, count);
        case 8: return hadamard<8>(numbers, count);
        case 16: return hadamard<16>(numbers, count);
        case 32: return hadamard<32>(numbers, count);
        case 64: return hadamard<64>(numbers, count);
        case 128: return hadamard<128>(numbers, count);
        case 256: return hadamard<256>(numbers, count);
    }
}

// The DCT over m rows of h numbers, or its transpose. The order of each sum is the reference's.
inline void mix(const float *__restrict from, float *__restrict to, int m, int h, const float *dct,
                bool inverse) {
    const int row = inverse ? 1 : m, step = inverse ? m : 1;
    for (int j = 0; j < m; j++)
        for (int i = 0; i < h; i++) {
            float total = dct[j * row] * from[i];
            for (int other = 1; other < m; other++)
                total += dct[j * row + other * step] * from[other * h + i];
            to[j * h + i] = total;
        }
}

// Numbers i and half + i of a row by one angle, as RoPE rotates them.
inline void rotate_pairs(float *__restrict row, int half, const float *cos, const float *sin) {
    for (int i = 0; i < half; i++) {
        const float a = row[i], b = row[half + i];
        row[i] = a * cos[i] - b * sin[i];
        row[half + i] = b * cos[i] + a * sin[i];
    }
}

}  // namespace
}  // namespace ISA
