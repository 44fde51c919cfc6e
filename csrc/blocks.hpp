// Rows of dim = m h numbers, one after the other, from their codes: docs/cachecard.md 4, `packed`.
//
// Memory is written fastest in the order of rows, and codes lie by tiers, in blocks of 32 rows. So
// each tier has an open block: its levels, transformed as far as 16 bits reach. The next one is
// opened when those rows have gone.
#pragma once

#include "lookup.hpp"
#include "rotation.hpp"

#include <cstring>

namespace ISA {
namespace {

constexpr int AHEAD = 16;                 // rows: memory is asked for before it is written
constexpr int PER_CHUNK = CHUNK / BYTES;  // vectors of bytes

// Planes of a code: 4, 2, 1 bits as there are in BITS, the widest first with the lowest bits.
// Byte i of one, which has `size` bytes, holds codes i, i + size, i + 2 size, ... from its lowest bits up.
constexpr int narrowest(int bits) { return bits & -bits; }

// A code (T is a byte), or a vector of them: `turn` times the bytes of the narrowest plane and `at`
// behind the first.
template <int BITS_, class T> T codes_at(const uint8_t *packed, size_t run, int turn, size_t at) {
    T codes{};
    int low = 0;
    for (int width : {8, 4, 2, 1}) {
        if (!(BITS_ & width)) continue;
        const int parts = width / narrowest(BITS_), shift = turn / parts * width;  // runs of this plane
        const uint8_t *found = packed + turn % parts * run + at, mask = uint8_t((1 << width) - 1);
        if constexpr (sizeof(T) == 1) {
            codes |= (*found >> shift & mask) << low;
        } else {  // bytes are moved two at a time
            const T part = (T)((V<uint16_t>)load(found) >> shift) & (T{} + mask);
            codes |= (T)((V<uint16_t>)part << low);
        }
        low += width;
        packed += parts * run;
    }
    return codes;
}

// The levels of a block's codes, runs of H transformed; `codes` is memory for them.
template <int TIER, int H>
void open(const uint8_t *packed, uint8_t *codes, size_t count, int16_t *levels) {
    constexpr int bits = BITS[TIER], turns = 8 / narrowest(bits);
    const size_t run = count / turns;
    auto open_chunk = [&](auto &&codes_of) {
        Shorts x[2 * PER_CHUNK];
        for (int n = 0; n < PER_CHUNK; n++) look_up<TIER>(codes_of(n * BYTES), x[2 * n], x[2 * n + 1]);
        hadamard<H>(x);
        for (int n = 0; n < 2 * PER_CHUNK; n++) store<int16_t>(levels + n * LANES<int16_t>, x[n]);
        levels += CHUNK;
    };
    if (run % CHUNK == 0) {
        for (int turn = 0; turn < turns; turn++)
            for (size_t at = 0; at < run; at += CHUNK)
                open_chunk([&](int n) { return codes_at<bits, Bytes>(packed, run, turn, at + n); });
        return;
    }
    for (int turn = 0; turn < turns; turn++)
        for (size_t at = 0; at < run; at++)
            codes[turn * run + at] = codes_at<bits, uint8_t>(packed, run, turn, at);
    memset(codes + count, 0, CHUNK);  // the last chunk's rest
    for (size_t at = 0; at < count; at += CHUNK)
        open_chunk([&](int n) { return load(codes + at + n); });
}

template <int TIER>
void open(const uint8_t *packed, uint8_t *codes, size_t count, int16_t *levels, int h) {
    if (h >= RUN) open<TIER, RUN>(packed, codes, count, levels);
    else if (h == 16) open<TIER, 16>(packed, codes, count, levels);
    else if (h == 8) open<TIER, 8>(packed, codes, count, levels);
    else open<TIER, 1>(packed, codes, count, levels);
}

// A tier's rows that are still to come, and its open block.
struct Tier {
    int64_t left, open;      // rows: of blocks that are not opened, of the open one
    const uint8_t *packed;   // the next block
    int16_t *levels, *next;  // the open block's, and the next row's
};

struct Rows {
    int dim, h;
    uint8_t *codes;  // memory for those of a block
    Tier tiers[8];

    // False if no block is left.
    bool open_block(int number) {
        Tier &tier = tiers[number];
        const int64_t rows = tier.left < BLOCK ? tier.left : BLOCK, wide = eights(dim);
        if (!rows) return false;
        const size_t count = size_t(rows * wide);
        if (!number) memset(tier.levels, 0, 2 * count);
        of_tier(number, [&]<int TIER> { open<TIER>(tier.packed, codes, count, tier.levels, h); });
        tier.packed += count * BITS[number] / 8;
        tier.left -= rows;
        tier.open = rows;
        tier.next = tier.levels;
        return true;
    }

    // The levels of the next row of a tier; null if it has none.
    const int16_t *next(int number) {
        Tier &tier = tiers[number];
        if (!tier.open && !open_block(number)) return nullptr;
        const int16_t *levels = tier.next;
        tier.open--;
        tier.next += eights(dim);
        return levels;
    }
};

// As many numbers of 16 bits as there are lanes of 32.
template <class T> struct Half {
    typedef T type __attribute__((vector_size(BYTES / 2), aligned(alignof(T)), may_alias));
};

inline void write(float *to, float number) { *to = number; }
inline void write(float *to, V<float> numbers) { store(to, numbers); }

// As bfloat16: to nearest, ties to even, as torch rounds.
template <class T> T rounded(T bits) { return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16; }
inline void write(uint16_t *to, float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    *to = uint16_t(rounded(bits));
}
inline void write(uint16_t *to, V<float> numbers) {
    using Shorts = typename Half<uint16_t>::type;
    *reinterpret_cast<Shorts *>(to) = __builtin_convertvector(rounded((V<uint32_t>)numbers), Shorts);
}

// One row of DIM = 64, 128 or 256: the rest of the transform, scale, mean, the rotation of numbers i and
// i + DIM / 2 to their position, and the number format.
template <int DIM, bool ROTATED, class Out>
inline void write_row(const int16_t *__restrict levels, float scale, const float *__restrict mean,
                      const float *__restrict cos, const float *__restrict sin, Out *__restrict out) {
    constexpr int N = DIM / RUN;
    for (int i = 0; i < RUN; i += LANES<float>) {
        V<int32_t> sum[N];
        V<float> number[N];
        for (int n = 0; n < N; n++)
            sum[n] = __builtin_convertvector(
                *reinterpret_cast<const Half<int16_t>::type *>(levels + n * RUN + i), V<int32_t>);
        for (int apart = 1; apart < N; apart *= 2)
            for (int n = 0; n < N; n++)
                if (!(n & apart)) butterfly<int32_t>(sum[n], sum[n | apart]);
        for (int n = 0; n < N; n++)
            number[n] = __builtin_convertvector(sum[n], V<float>) * scale + load(mean + n * RUN + i);
        if (ROTATED)
            for (int n = 0; n < N / 2; n++) {
                const V<float> a = number[n], b = number[n + N / 2];
                const V<float> c = load(cos + n * RUN + i), s = load(sin + n * RUN + i);
                number[n] = a * c - b * s;
                number[n + N / 2] = b * c + a * s;
            }
        for (int n = 0; n < N; n++) write(out + n * RUN + i, number[n]);
    }
}

// Rows one behind the other, each with its cosines and sines, of one head. False if there are fewer.
template <int DIM, bool ROTATED, class Out>
bool write_run(Rows &rows, const uint8_t *info, int64_t count, const float *scales, const float *mean,
               const float *cos, const float *sin, Out *out) {
    for (int64_t n = 0; n < count; n++, out += DIM) {
        const int16_t *levels = rows.next(info[n] & 7);
        if (!levels) return false;
        for (int at = 0; at < DIM * int(sizeof(Out)); at += 64)
            __builtin_prefetch(reinterpret_cast<char *>(out + AHEAD * DIM) + at, 1);
        write_row<DIM, ROTATED>(levels, scales[info[n] >> 3], mean, cos, sin, out);
        if (ROTATED) cos += DIM / 2, sin += DIM / 2;
    }
    return true;
}

}  // namespace
}  // namespace ISA
