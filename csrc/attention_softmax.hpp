// The online softmax (Milakov and Gimelshein, arXiv:1805.02867): weights are relative to the
// largest score so far, and when there is a larger one, what was summed before is multiplied.
#pragma once
#include "attention.hpp"
#include "attention_vectors.hpp"

namespace ISA {
namespace {

constexpr float LOWEST = -3.40282347e38f;

// Of numbers that are not above 0; what is no number stays none. exp(x) = 2**n exp(r), where n is
// x / log(2) to the nearest, by the polynomial of Cephes' expf.
inline Floats exp(Floats x) {
    const Floats least = all(-87), up = all(12582912);  // adding 1.5 * 2**23 rounds
    const Floats n = (greater(x, least) * all(1.44269504088896341f) + up) - up;
    const Floats r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
    Floats series = all(1.9875691500e-4f);
    constexpr float TERMS[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                               1.6666665459e-1f, 0.5f};
    for (float term : TERMS) series = fused(series, r, all(term));
    series = fused(series, r * r, r) + 1;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return x < least ? Floats{} : series * Floats(power);
}

// What is known of a row: the largest score so far, the sum of the weights so far, and what that
// which was summed with them is to be multiplied with.
struct Known {
    float peak, total, shrink;
};

// Scores [TILE], of which `count` are tokens' and the others count for nothing, become weights.
inline void weigh(float *scores, const float *mask, int64_t count, Known &row) {
    constexpr int VECTORS = TILE / WIDE;
    Floats found[VECTORS], peaks = all(row.peak), total{};
    Ints inside[VECTORS], place;
    for (int n = 0; n < WIDE; n++) place[n] = n;
    for (int n = 0; n < VECTORS; n++) {
        inside[n] = place + n * WIDE < int32_t(count);
        found[n] = load(scores + n * WIDE);
        if (mask) found[n] += load(mask + n * WIDE);
        found[n] = inside[n] ? greater(all(LOWEST), found[n]) : all(LOWEST);
        peaks = greater(peaks, found[n]);
    }
    const Floats before = all(row.peak), peak = all(folded<greater>(peaks));
    for (int n = 0; n < VECTORS; n++) {
        const Floats weights = inside[n] ? exp(found[n] - peak) : Floats{};
        store(scores + n * WIDE, weights);
        total += weights;
    }
    const float shrink = exp(before - peak)[0];
    row = {peak[0], row.total * shrink + folded<sum>(total), shrink};
}

}  // namespace
}  // namespace ISA
