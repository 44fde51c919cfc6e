// Rows of dim = m h numbers, one after the other, from their codes: docs/cachecard.md, "packed".
//
// Memory is written fastest in the order of rows, and codes lie by tiers, in blocks of 32 rows. So
// each tier has an open block: its levels, transformed as far as 16 bits reach. The next one is
// opened when those rows have gone.
#pragma once

#include "hadamard.hpp"
#include "lookup.hpp"

#include <cstring>

namespace ISA {
namespace {

constexpr int AHEAD = 16;                   // rows: memory is asked for before it is written
constexpr int PER_CHUNK = CHUNK / BYTES;  // vectors of bytes

// Planes of a code: 4, 2, 1 bits as there are in BITS, the widest first with the lowest bits.
// Byte i of one, which has `size` bytes, holds codes i, i + size, i + 2 size, ... from its lowest bits up.
constexpr int narrowest(int bits) { return bits & -bits; }

// A vector of codes: those `turn` times the bytes of the narrowest plane and `at` behind the first.
template <int BITS_> Bytes codes_at(const uint8_t *packed, size_t run, int turn, size_t at) {
    Bytes codes{};
    int low = 0;
    for (int width : {8, 4, 2, 1}) {
        if (!(BITS_ & width)) continue;
        const int parts = width / narrowest(BITS_);  // runs of this plane
        const Bytes found = load(packed + turn % parts * run + at);
        const Bytes mask = Bytes{} + uint8_t((1 << width) - 1);
        // Bytes are moved two at a time.
        const Bytes part = (Bytes)((V<uint16_t>)found >> turn / parts * width) & mask;
        codes |= (Bytes)((V<uint16_t>)part << low);
        low += width;
        packed += parts * run;
    }
    return codes;
}

// The same of one code.
template <int BITS_> uint8_t code_at(const uint8_t *packed, size_t run, size_t turn, size_t at) {
    int code = 0, low = 0;
    for (int width : {8, 4, 2, 1}) {
        if (!(BITS_ & width)) continue;
        const size_t parts = width / narrowest(BITS_);
        const int found = packed[turn % parts * run + at] >> turn / parts * width;
        code |= (found & ((1 << width) - 1)) << low;
        low += width;
        packed += parts * run;
    }
    return uint8_t(code);
}

// The levels of a block's codes, runs of H transformed; `codes` is room for them.
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
                open_chunk([&](int n) { return codes_at<bits>(packed, run, turn, at + n); });
        return;
    }
    for (int turn = 0; turn < turns; turn++)
        for (size_t at = 0; at < run; at++) codes[turn * run + at] = code_at<bits>(packed, run, turn, at);
    for (size_t at = 0; at < count; at += CHUNK)
        open_chunk([&](int n) { return load(codes + at + n); });
}

template <int TIER>
void open(const uint8_t *packed, uint8_t *codes, size_t count, int16_t *levels, int h) {
    if (h >= 64) open<TIER, 64>(packed, codes, count, levels);
    else if (h == 32) open<TIER, 32>(packed, codes, count, levels);
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
    uint8_t *codes;  // room for those of a block
    Tier tiers[8];

    // False if no block is left.
    bool open_block(int number) {
        Tier &tier = tiers[number];
        const int64_t rows = tier.left < BLOCK ? tier.left : BLOCK, wide = eights(dim);
        if (!rows) return false;
        const size_t count = size_t(rows * wide);
        switch (number) {
            case 0: memset(tier.levels, 0, 2 * count); break;
            case 1: open<1>(tier.packed, codes, count, tier.levels, h); break;
            case 2: open<2>(tier.packed, codes, count, tier.levels, h); break;
            case 3: open<3>(tier.packed, codes, count, tier.levels, h); break;
            case 4: open<4>(tier.packed, codes, count, tier.levels, h); break;
            case 5: open<5>(tier.packed, codes, count, tier.levels, h); break;
            case 6: open<6>(tier.packed, codes, count, tier.levels, h); break;
            case 7: open<7>(tier.packed, codes, count, tier.levels, h); break;
        }
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

inline void write(float *to, float number) { *to = number; }

// As bfloat16: to nearest, ties to even, as torch rounds.
inline void write(uint16_t *to, float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    *to = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// One row of DIM = 64, 128 or 256: the rest of the transform, scale, mean, the turn of numbers i and
// i + DIM / 2 to their position, and the number format.
template <int DIM, bool TURNED, class Out>
inline void write_row(const int16_t *__restrict levels, float scale, const float *__restrict mean,
                      const float *__restrict cos, const float *__restrict sin, Out *__restrict out) {
    constexpr int STEP = DIM / 2 < CHUNK ? DIM / 2 : CHUNK, N = DIM / STEP;
    for (int i = 0; i < STEP; i++) {
        int32_t sum[N];
        float number[N];
        for (int n = 0; n < N; n++) sum[n] = levels[n * STEP + i];
        for (int apart = CHUNK / STEP; apart < N; apart *= 2)
            for (int n = 0; n < N; n++)
                if (!(n & apart)) {
                    const int32_t a = sum[n], b = sum[n | apart];
                    sum[n] = a + b;
                    sum[n | apart] = a - b;
                }
        for (int n = 0; n < N; n++) number[n] = float(sum[n]) * scale + mean[n * STEP + i];
        if (TURNED)
            for (int n = 0; n < N / 2; n++) {
                const float a = number[n], b = number[n + N / 2];
                const float c = cos[n * STEP + i], s = sin[n * STEP + i];
                number[n] = a * c - b * s;
                number[n + N / 2] = b * c + a * s;
            }
        for (int n = 0; n < N; n++) write(out + n * STEP + i, number[n]);
    }
}

// Rows one behind the other, each with its cosines and sines, of one head. False if there are fewer.
template <int DIM, bool TURNED, class Out>
bool write_run(Rows &rows, const uint8_t *info, int64_t count, const float *scales, const float *mean,
               const float *cos, const float *sin, Out *out) {
    for (int64_t n = 0; n < count; n++, out += DIM) {
        const int16_t *levels = rows.next(info[n] & 7);
        if (!levels) return false;
        for (int at = 0; at < DIM * int(sizeof(Out)); at += 64)
            __builtin_prefetch(reinterpret_cast<char *>(out + AHEAD * DIM) + at, 1);
        write_row<DIM, TURNED>(levels, scales[info[n] >> 3], mean, cos, sin, out);
        if (TURNED) cos += DIM / 2, sin += DIM / 2;
    }
    return true;
}

}  // namespace
}  // namespace ISA
