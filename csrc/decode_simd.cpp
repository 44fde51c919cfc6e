// Rows from their codes into their place in a cache (docs/cachecard.md 4, `packed`):
// number = inverse DCT of (Hadamard(level) * scale) + mean, and keys rotated by RoPE.
#include "blocks.hpp"
#include "decode.hpp"

namespace ISA {
namespace {

// One row of any other dim = m h: small transforms that are still to do, the inverse DCT over m, and
// then the same.
template <bool ROTATED, class Out>
void write_any(const int16_t *levels, float scale, const float *mean, const float *cos,
               const float *sin, Out *out, int dim, int h, const float *dct, float *space) {
    const int m = dim / h;
    float *scaled = space, *number = space + dim;
    for (int run = 0; run < dim; run += h) {
        int32_t sum[256];
        for (int i = 0; i < h; i++) sum[i] = levels[run + i];
        for (int apart = h < 8 ? 1 : RUN; apart < h; apart *= 2)
            for (int i = 0; i < h; i++)
                if (!(i & apart)) {
                    const int32_t a = sum[i], b = sum[i | apart];
                    sum[i] = a + b;
                    sum[i | apart] = a - b;
                }
        for (int i = 0; i < h; i++) scaled[run + i] = float(sum[i]) * scale;
    }
    if (m > 1) mix(scaled, number, m, h, dct, true);
    else memcpy(number, scaled, sizeof(float) * dim);
    for (int i = 0; i < dim; i++) number[i] += mean[i];
    if (ROTATED) rotate_pairs(number, dim / 2, cos, sin);
    for (int i = 0; i < dim; i++) write(out + i, number[i]);
}

template <int DIM, bool ROTATED, class Out>
bool write_rows(Rows &rows, const Part &part, const Shape &shape, float *space) {
    const int dim = DIM ? DIM : shape.dim, half = ROTATED ? dim / 2 : 0;
    float *zeros = space + 2 * dim;
    memset(zeros, 0, sizeof(float) * dim);
    const uint8_t *info = part.info;
    for (int64_t head = 0; head < part.heads; head++, info += part.tokens) {
        const float *mean = part.mean ? part.mean + head * dim : zeros;
        Out *out = static_cast<Out *>(part.numbers) + head * part.apart;
        if constexpr (DIM != 0) {
            if (!write_run<DIM, ROTATED>(rows, info, part.tokens, part.scales, mean, part.cos, part.sin, out))
                return false;
            continue;
        }
        for (int64_t token = 0; token < part.tokens; token++) {
            const int16_t *levels = rows.next(info[token] & 7);
            if (!levels) return false;
            write_any<ROTATED>(levels, part.scales[info[token] >> 3], mean, part.cos + token * half,
                              part.sin + token * half, out + token * dim, dim, rows.h, shape.dct, space);
        }
    }
    return true;
}

template <int DIM> bool write_rows(Rows &rows, const Part &part, const Shape &shape, float *space) {
    if (shape.bfloat16)
        return part.cos ? write_rows<DIM, true, uint16_t>(rows, part, shape, space)
                        : write_rows<DIM, false, uint16_t>(rows, part, shape, space);
    return part.cos ? write_rows<DIM, true, float>(rows, part, shape, space)
                    : write_rows<DIM, false, float>(rows, part, shape, space);
}

}  // namespace

bool decode(const Part &part, const Shape &shape, char *space) {
    const int dim = shape.dim;
    if (!part.tokens) return true;
    const int64_t wide = eights(dim), each = BLOCK * wide + CHUNK;
    Rows rows{dim, dim & -dim, reinterpret_cast<uint8_t *>(space + 12 * wide), {}};
    int64_t count[8] = {}, at = 0;
    for (int64_t n = 0; n < part.heads * part.tokens; n++) count[part.info[n] & 7]++;
    int16_t *levels = reinterpret_cast<int16_t *>(rows.codes + each);
    for (int n = 0; n < 8; n++) {
        rows.tiers[n] = {count[n], 0, part.codes + at, levels + n * each, nullptr};
        at += count[n] * (wide * BITS[n] / 8);
    }
    if (at > part.nbytes) return false;
    float *floats = reinterpret_cast<float *>(space);
    if (dim == 64) return write_rows<64>(rows, part, shape, floats);
    if (dim == 128) return write_rows<128>(rows, part, shape, floats);
    if (dim == 256) return write_rows<256>(rows, part, shape, floats);
    return write_rows<0>(rows, part, shape, floats);
}

}  // namespace ISA
