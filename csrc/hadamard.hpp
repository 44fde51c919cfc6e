// Walsh-Hadamard transforms of whole vectors (docs/cachecard.md, "packed"): butterflies of a
// number and the one whose index differs in one bit.
//
// A number's index bits say in which vector it lies, in which quarter of it, and at which place of
// that. A butterfly is a sum and a difference of two vectors once its bit tells them apart; the
// shuffles that bring it there turn the bits round by one, and after all of them every number is
// where it began.
#pragma once

#include "simd.hpp"

namespace ISA {
namespace {

constexpr int CHUNK = 64;  // numbers; so many levels of any valid row sum up to no more than 16 bits

// Runs of H numbers of 16 bits, H a power of two up to CHUNK, of a chunk, in place. The sums are
// exact, so their order does not matter.
template <int H> void hadamard(int16_t *numbers) {
    using T = int16_t;
    constexpr int L = LANES<T>, N = CHUNK / L, Q = QUARTER / 2;
    V<T> x[N];
    for (int n = 0; n < N; n++) x[n] = load(numbers + n * L);
    for (int apart = N / 2; apart > 0; apart /= 2)
        if (H > apart * L)
            for (int n = 0; n < N; n++)
                if (!(n & apart)) butterfly<T>(x[n], x[n | apart]);
    for (int n = 0; n < N; n += 2) {
        V<T> &a = x[n], &b = x[n + 1];
        for (int bit = Q / 2; bit > 0; bit /= 2) {
            shuffle<T, Turns<T, 0>, Turns<T, 1>>(a, b);
            if (H > bit) butterfly<T>(a, b);
        }
        shuffle<T, Turns<T, 0>, Turns<T, 1>>(a, b);
        if constexpr (L > Q) {
            for (int bit = Q; bit < L; bit *= 2) {
                shuffle<T, Runs<T, Q, L, 0>, Runs<T, Q, L, 1>>(a, b);
                if (H > bit) butterfly<T>(a, b);
            }
            shuffle<T, Runs<T, Q, L, 0>, Runs<T, Q, L, 1>>(a, b);
        }
    }
    for (int n = 0; n < N; n++) store<T>(numbers + n * L, x[n]);
}

}  // namespace
}  // namespace ISA
