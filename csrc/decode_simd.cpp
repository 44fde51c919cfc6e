// Rows from their codes: docs/cachecard.md, "packed".
//
// Memory is written fastest in the order of rows, and codes lie by tiers, in blocks of 32 rows. So
// each tier has an open block: its levels, transformed as far as 16 bits reach. The next block is
// opened when those rows have gone.
#include "decode.hpp"
#include "hadamard.hpp"

#include <cstring>

namespace ISA {
namespace {

constexpr int AHEAD = 16;  // rows; memory comes before it is written

// Bits `low` and on of `count` codes from a plane of `WIDTH` bits a code: byte i holds those of codes
// i, i + size, i + 2 size, ... from its lowest bits up.
template <int WIDTH, int LOW> const uint8_t *unpack(const uint8_t *plane, uint8_t *codes, size_t count) {
    const size_t size = count * WIDTH / 8;
    for (int turn = 0; turn < 8 / WIDTH; turn++, codes += size)
        for (size_t i = 0; i < size; i++) {
            const uint8_t part = uint8_t((plane[i] >> turn * WIDTH & ((1 << WIDTH) - 1)) << LOW);
            codes[i] = LOW ? codes[i] | part : part;
        }
    return plane + size;
}

// The levels of a block's codes.
template <int TIER> void open(const uint8_t *packed, uint8_t *codes, size_t count, int16_t *levels) {
    constexpr int bits = BITS[TIER];
    if constexpr (bits & 4) packed = unpack<4, 0>(packed, codes, count);
    if constexpr (bits & 2) packed = unpack<2, bits & 4>(packed, codes, count);
    if constexpr (bits & 1) packed = unpack<1, bits & 6>(packed, codes, count);
    const uint8_t *from = bits == 8 ? packed : codes;
    for (size_t i = 0; i < count; i++) levels[i] = level<TIER>(from[i]);
}

// Runs of h numbers, in place; of more than a chunk what 16 bits hold.
void transform(int16_t *numbers, size_t count, int h) {
    for (size_t i = 0; i < count; i += CHUNK) {
        if (h >= 64) hadamard<64>(numbers + i);
        else if (h == 32) hadamard<32>(numbers + i);
        else if (h == 16) hadamard<16>(numbers + i);
        else if (h == 8) hadamard<8>(numbers + i);
        else if (h == 4) hadamard<4>(numbers + i);
        else if (h == 2) hadamard<2>(numbers + i);
    }
}

inline void write(float *to, float number) { *to = number; }

// As bfloat16: to nearest, ties to even, as torch rounds.
inline void write(uint16_t *to, float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    *to = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// A tier's rows that are still to come, and its open block.
struct Tier {
    int64_t left, open;      // rows: of blocks that are not opened, of the open one
    const uint8_t *packed;   // the next block
    int16_t *levels, *next;  // the open block's, and the next row's
};

struct Rows {
    const Part &part;
    int dim, h;
    uint8_t *codes;
    Tier tiers[8];

    // False if no block is left.
    bool open_block(int number) {
        Tier &tier = tiers[number];
        const int64_t rows = tier.left < BLOCK ? tier.left : BLOCK, wide = eights(dim);
        if (!rows) return false;
        const size_t count = size_t(rows * wide);
        switch (number) {
            case 0: memset(tier.levels, 0, 2 * count); break;
            case 1: open<1>(tier.packed, codes, count, tier.levels); break;
            case 2: open<2>(tier.packed, codes, count, tier.levels); break;
            case 3: open<3>(tier.packed, codes, count, tier.levels); break;
            case 4: open<4>(tier.packed, codes, count, tier.levels); break;
            case 5: open<5>(tier.packed, codes, count, tier.levels); break;
            case 6: open<6>(tier.packed, codes, count, tier.levels); break;
            case 7: open<7>(tier.packed, codes, count, tier.levels); break;
        }
        if (number) {
            if (wide != dim)
                for (int64_t row = 1; row < rows; row++)
                    memmove(tier.levels + row * dim, tier.levels + row * wide, 2 * dim);
            transform(tier.levels, size_t(rows * dim), h);
        }
        tier.packed += count * BITS[number] / 8;
        tier.left -= rows;
        tier.open = rows;
        tier.next = tier.levels;
        return true;
    }
};

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

// One row of any other dim = m h: also the inverse DCT over m.
template <bool TURNED, class Out>
void write_any(const int16_t *levels, float scale, const float *mean, const float *cos,
               const float *sin, Out *out, int dim, int h, const float *dct, float *space) {
    const int m = dim / h;
    float *scaled = space, *number = space + dim;
    for (int run = 0; run < dim; run += h) {
        int32_t sum[256];
        for (int i = 0; i < h; i++) sum[i] = levels[run + i];
        for (int apart = CHUNK; apart < h; apart *= 2)
            for (int i = 0; i < h; i++)
                if (!(i & apart)) {
                    const int32_t a = sum[i], b = sum[i | apart];
                    sum[i] = a + b;
                    sum[i | apart] = a - b;
                }
        for (int i = 0; i < h; i++) scaled[run + i] = float(sum[i]) * scale;
    }
    for (int j = 0; j < m; j++)
        for (int i = 0; i < h; i++) {
            float total = m > 1 ? scaled[i] * dct[j] : scaled[i];
            for (int other = 1; other < m; other++) total += dct[other * m + j] * scaled[other * h + i];
            number[j * h + i] = total + mean[j * h + i];
        }
    const int half = dim / 2;
    if (TURNED)
        for (int i = 0; i < half; i++) {
            const float a = number[i], b = number[half + i];
            number[i] = a * cos[i] - b * sin[i];
            number[half + i] = b * cos[i] + a * sin[i];
        }
    for (int i = 0; i < dim; i++) write(out + i, number[i]);
}

template <int DIM, bool TURNED, class Out> bool write_rows(Rows &rows, const Shape &shape, float *space) {
    const Part &part = rows.part;
    const int dim = DIM ? DIM : shape.dim, half = TURNED ? dim / 2 : 0;
    float *zeros = space + 2 * dim;
    memset(zeros, 0, sizeof(float) * dim);
    const uint8_t *info = part.info;
    for (int64_t head = 0; head < part.heads; head++) {
        const float *mean = part.mean ? part.mean + head * dim : zeros;
        Out *out = static_cast<Out *>(part.numbers) + head * part.apart;
        const float *cos = part.cos, *sin = part.sin;
        for (int64_t token = 0; token < part.tokens; token++) {
            const uint8_t byte = *info++;
            Tier &tier = rows.tiers[byte & 7];
            if (!tier.open && !rows.open_block(byte & 7)) return false;
            const float scale = part.scales[byte >> 3];
            if constexpr (DIM) {
                for (int at = 0; at < DIM * int(sizeof(Out)); at += 64)
                    __builtin_prefetch(reinterpret_cast<char *>(out + AHEAD * DIM) + at, 1);
                write_row<DIM, TURNED>(tier.next, scale, mean, cos, sin, out);
            } else {
                write_any<TURNED>(tier.next, scale, mean, cos, sin, out, dim, rows.h, shape.dct, space);
            }
            tier.open--;
            tier.next += dim;
            out += dim;
            cos += half;
            sin += half;
        }
    }
    return true;
}

template <int DIM> bool write_rows(Rows &rows, const Shape &shape, float *space) {
    const bool turned = rows.part.cos;
    if (shape.bfloat16)
        return turned ? write_rows<DIM, true, uint16_t>(rows, shape, space)
                      : write_rows<DIM, false, uint16_t>(rows, shape, space);
    return turned ? write_rows<DIM, true, float>(rows, shape, space)
                  : write_rows<DIM, false, float>(rows, shape, space);
}

}  // namespace

bool decode(const Part &part, const Shape &shape, char *space) {
    const int dim = shape.dim;
    const int64_t wide = eights(dim), each = BLOCK * wide + CHUNK;
    Rows rows{part, dim, dim & -dim, reinterpret_cast<uint8_t *>(space + 16 * dim), {}};
    int64_t count[8] = {}, at = 0;
    for (int64_t n = 0; n < part.heads * part.tokens; n++) count[part.info[n] & 7]++;
    int16_t *levels = reinterpret_cast<int16_t *>(rows.codes + BLOCK * wide);
    for (int n = 0; n < 8; n++) {
        rows.tiers[n] = {count[n], 0, part.codes + at, levels + n * each, nullptr};
        at += count[n] * (wide * BITS[n] / 8);
    }
    if (at > part.nbytes) return false;
    float *floats = reinterpret_cast<float *>(space);
    if (dim == 64) return write_rows<64>(rows, shape, floats);
    if (dim == 128) return write_rows<128>(rows, shape, floats);
    if (dim == 256) return write_rows<256>(rows, shape, floats);
    return write_rows<0>(rows, shape, floats);
}

}  // namespace ISA
