// Rows of dim = m h numbers, one after the other, from their codes: docs/cachecard.md 4, `packed`.
//
// Memory is written fastest in the order of rows, and codes lie by tiers, in blocks of 32 rows. So
// each tier has an open block: its levels, transformed as far as 16 bits reach. The next one is
// opened when those rows have gone.
#pragma once

#include "decode.hpp"
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

// The levels of a block's codes, runs of H transformed (of 1: as they are); `codes` is memory for them.
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

// A tier's rows that are still to come, and its open block.
struct Tier {
    int64_t left, open;      // rows: of blocks that are not opened, of the open one
    const uint8_t *packed;   // the next block
    int16_t *levels, *next;  // the open block's, and the next row's
};

// Rows of a part, from some row on.
struct Rows {
    const int dim;
    const bool runs;        // a block's runs of RUN numbers are transformed when it is opened
    uint8_t *const codes;   // memory for those of a block
    float *const numbers;   // memory for two rows
    Tier tiers[8];

    // Of each tier there are `total` rows, and `gone` are behind. No rows if there are fewer codes:
    // whoever shares the memory may have changed what was checked. `space`: see decode_space.
    Rows(const Part &part, const int64_t *total, const int64_t *gone, char *space)
        : dim(part.dim), runs(dim == 64 || dim == 128 || dim == 256),
          codes(reinterpret_cast<uint8_t *>(space)),
          numbers(reinterpret_cast<float *>(space + BLOCK * eights(dim) + CHUNK)) {
        const int64_t wide = eights(dim);
        int16_t *levels = reinterpret_cast<int16_t *>(numbers + 2 * wide);
        int64_t at = 0;
        for (int n = 0; n < 8; n++) {
            const int64_t whole = gone[n] / BLOCK * BLOCK, each = wide * BITS[n] / 8;
            tiers[n] = {total[n] - whole, 0, part.codes + at + whole * each, levels, nullptr};
            levels += BLOCK * wide + CHUNK;
            at += total[n] * each;
        }
        for (int n = 0; n < 8; n++) {
            if (at > part.nbytes) tiers[n].left = 0;
            const int64_t here = gone[n] % BLOCK;
            if (here && open_block(n)) tiers[n].open -= here, tiers[n].next += here * wide;
        }
    }

    // False if no block is left.
    bool open_block(int number) {
        Tier &tier = tiers[number];
        const int64_t rows = tier.left < BLOCK ? tier.left : BLOCK;
        if (!rows) return false;
        const size_t count = size_t(rows * eights(dim));
        if (!number) memset(tier.levels, 0, 2 * count);
        of_tier(number, [&]<int TIER> {
            if (runs) open<TIER, RUN>(tier.packed, codes, count, tier.levels);
            else open<TIER, 1>(tier.packed, codes, count, tier.levels);
        });
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

// One row of any other dim = m h: the whole transform, the inverse DCT over m, and then the same.
template <bool ROTATED, class Out>
void write_any(const int16_t *levels, float scale, const float *mean, const float *cos, const float *sin,
               Out *out, int dim, const float *dct, float *number) {
    const int h = dim & -dim;
    float *scaled = number + dim;
    for (int i = 0; i < dim; i++) scaled[i] = levels[i];
    hadamard(scaled, size_t(dim), h);
    for (int i = 0; i < dim; i++) scaled[i] *= scale;
    mix(scaled, number, dim / h, h, dct, true);
    for (int i = 0; i < dim; i++) number[i] += mean[i];
    if (ROTATED) rotate_pairs(number, dim / 2, cos, sin);
    for (int i = 0; i < dim; i++) write(out + i, number[i]);
}

// Rows of a head from `token` on, one behind the other. False if there are fewer. DIM 0: any dim.
template <int DIM, bool ROTATED, class Out>
bool write_rows(Rows &rows, const Part &part, int64_t head, int64_t token, int64_t count, Out *out) {
    const int dim = DIM ? DIM : rows.dim, half = ROTATED ? dim / 2 : 0;
    const uint8_t *info = part.info + head * part.tokens + token;
    const float *mean = part.mean ? part.mean + head * dim : ZEROS;
    const float *cos = part.cos + token * half, *sin = part.sin + token * half;
    for (int64_t n = 0; n < count; n++, out += dim, cos += half, sin += half) {
        const int16_t *levels = rows.next(info[n] & 7);
        if (!levels) return false;
        for (int at = 0; at < dim * int(sizeof(Out)); at += 64)
            __builtin_prefetch(reinterpret_cast<char *>(out + AHEAD * dim) + at, 1);
        const float scale = part.scales[info[n] >> 3];
        if constexpr (DIM) write_row<DIM, ROTATED>(levels, scale, mean, cos, sin, out);
        else write_any<ROTATED>(levels, scale, mean, cos, sin, out, dim, part.dct, rows.numbers);
    }
    return true;
}

template <class Out>
bool write_rows(Rows &rows, const Part &part, int64_t head, int64_t token, int64_t count, Out *out) {
    auto of_dim = [&]<int DIM> {
        return part.cos ? write_rows<DIM, true>(rows, part, head, token, count, out)
                        : write_rows<DIM, false>(rows, part, head, token, count, out);
    };
    switch (rows.dim) {
        case 64: return of_dim.template operator()<64>();
        case 128: return of_dim.template operator()<128>();
        case 256: return of_dim.template operator()<256>();
        default: return of_dim.template operator()<0>();
    }
}

}  // namespace
}  // namespace ISA
