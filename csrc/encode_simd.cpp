// Rows from where a cache has them to their codes (docs/cachecard.md 4, `packed`): rotated back, less
// their mean, code = nearest level of Hadamard(DCT(number)) * scale, and codes to planes.
#include "counts.hpp"
#include "encode.hpp"
#include "rotation.hpp"

#include <cstring>

namespace ISA {
namespace {

constexpr int OCTAVE = 3, LOWEST = -300;  // scales per factor of two; the least exponent
constexpr double UNIT = 256, TOP = 1020;  // one standard deviation; the largest level of 8 bits

inline float widened(float number) { return number; }
inline float widened(uint16_t bits) {
    const uint32_t all = uint32_t(bits) << 16;
    float number;
    memcpy(&number, &all, 4);
    return number;
}

inline float larger(float a, float b) { return a > b ? a : b; }

// What a thread has for itself, see encode_space.
struct Space {
    int64_t *order;   // [rows]
    double *total;    // [dim]
    float *x, *mean;  // [rows, dim], [heads, dim]
    float *squares;   // [rows]

    Space(const Source &source, char *memory) {
        const int64_t rows = source.heads * source.tokens, dim = source.dim;
        order = reinterpret_cast<int64_t *>(memory);
        total = reinterpret_cast<double *>(order + rows);
        x = reinterpret_cast<float *>(total + dim);
        mean = x + rows * dim;
        squares = mean + source.heads * dim;
    }
};

// As the decoder will see it, to `source.mean` and `mean`: eight bits are enough, for what is taken away is
// exactly what is added again.
void find_mean(const float *x, const Source &source, double *total, float *mean) {
    const int dim = source.dim;
    int8_t *codes = reinterpret_cast<int8_t *>(source.mean + 4 * source.heads);
    for (int64_t head = 0; head < source.heads; head++, mean += dim, codes += dim) {
        for (int i = 0; i < dim; i++) total[i] = 0;
        for (int64_t token = 0; token < source.tokens; token++, x += dim)
            for (int i = 0; i < dim; i++) total[i] += x[i];
        float largest = 0;
        for (int i = 0; i < dim; i++) {
            mean[i] = float(total[i] / double(source.tokens));
            largest = larger(largest, __builtin_fabsf(mean[i]));
        }
        const float step = largest / 127.0f > 1e-30f ? largest / 127.0f : 1e-30f;
        memcpy(source.mean + 4 * head, &step, 4);
        for (int i = 0; i < dim; i++) {
            const float code = __builtin_rintf(mean[i] / step);
            codes[i] = code >= -127 && code <= 127 ? int8_t(code) : 0;  // 0 of what is no number
            mean[i] = float(codes[i]) * step;
        }
    }
}

// Rows to `x` in float32, rotated back.
template <class Number> void spread(const Source &source, float *x) {
    const int dim = source.dim, half = dim / 2;
    float *to = x;
    for (int64_t head = 0; head < source.heads; head++) {
        const Number *from = static_cast<const Number *>(source.numbers) + head * source.apart;
        const float *cos = source.cos, *sin = source.sin;
        for (int64_t token = 0; token < source.tokens; token++, from += dim, to += dim) {
            for (int i = 0; i < dim; i++) to[i] = widened(from[i]);
            if (!cos) continue;
            rotate_pairs(to, half, cos, sin);
            cos += half, sin += half;
        }
    }
}

// The sum of the squares of a row without its mean, which is taken away in place. It is of 16 sums,
// whatever the processor's vectors are.
float center(float *__restrict x, const float *__restrict mean, int dim) {
    float sums[16] = {};
    const int whole = dim / 16 * 16;
    for (int at = 0; at < whole; at += 16)
        for (int n = 0; n < 16; n++) {
            x[at + n] -= mean[at + n];
            sums[n] += x[at + n] * x[at + n];
        }
    for (int left = 8; left; left /= 2)
        for (int n = 0; n < left; n++) sums[n] += sums[n + left];
    float total = sums[0];
    for (int i = whole; i < dim; i++) {
        x[i] -= mean[i];
        total += x[i] * x[i];
    }
    return total;
}

void mean_squares(const Source &source, const Space &space, float *squares) {
    const int dim = source.dim;
    if (source.bfloat16) spread<uint16_t>(source, space.x);
    else spread<float>(source, space.x);
    if (source.mean) find_mean(space.x, source, space.total, space.mean);
    else memset(space.mean, 0, sizeof(float) * source.heads * dim);
    float *x = space.x;
    for (int64_t head = 0; head < source.heads; head++)
        for (int64_t token = 0; token < source.tokens; token++, x += dim)
            *squares++ = center(x, space.mean + head * dim, dim) / float(dim);
}

// The rows' bytes, of rotated rows and their mean squares before. Returns the largest exponent.
int exponents(const Source &source, const float *x, const float *squares, int64_t *order, uint8_t *info) {
    const int dim = source.dim, h = dim & -dim;
    const int64_t rows = source.heads * source.tokens;
    const double least = __builtin_pow(2, 2.0 * LOWEST / OCTAVE);
    int64_t top = LOWEST;
    for (int64_t row = 0; row < rows; row++, x += dim) {
        const bool wide = source.widths[row] == 8;
        double square = squares[row];
        if (wide) {  // eight bits are spent on rows that must not be clipped
            float peak = 0;
            for (int i = 0; i < dim; i++) peak = larger(peak, __builtin_fabsf(x[i]));
            const double most = double(peak) * (UNIT / __builtin_sqrt(h) / TOP);
            square = square > most * most ? square : most * most;
        }
        const double exact = __builtin_log2(square > least ? square : least) * (OCTAVE / 2.0);
        // Below all where the square is infinite.
        order[row] = exact < INT16_MAX ? int64_t(wide ? __builtin_ceil(exact) : __builtin_rint(exact)) : INT32_MIN;
        top = top > order[row] ? top : order[row];
    }
    for (int64_t row = 0; row < rows; row++) {
        const int64_t scale = order[row] - (top - 31), width = source.widths[row];
        info[row] = uint8_t((width == 8 ? 7 : width) | (scale > 0 ? scale : 0) << 3);
    }
    return int(top);
}

// Rows one behind the other, in place: the DCT over the odd part m of dim = m h, then Hadamard.
void rotate(float *x, int64_t rows, int dim, const float *dct, float *space) {
    const int h = dim & -dim, m = dim / h;
    for (int64_t row = 0; m > 1 && row < rows; row++) {
        float *own = x + row * dim;
        mix(own, space, m, h, dct, false);
        memcpy(own, space, sizeof(float) * dim);
    }
    hadamard(x, size_t(rows) * dim, h);
}

// A plane of WIDTH bits of codes, from bit LOW on: byte i holds those of codes i, i + size, ...
template <int WIDTH, int LOW>
uint8_t *pack(const uint8_t *__restrict codes, size_t count, uint8_t *__restrict plane) {
    const size_t size = count * WIDTH / 8;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = 0;
        for (int turn = 0; turn < 8 / WIDTH; turn++)
            byte |= uint8_t((codes[turn * size + i] >> LOW & ((1 << WIDTH) - 1)) << turn * WIDTH);
        plane[i] = byte;
    }
    return plane + size;
}

// Rotated rows of one tier, which `order` numbers, to packed codes. Returns where they end.
template <int TIER>
uint8_t *code_rows(const float *x, const uint8_t *info, const float *scales, int dim,
                   const int64_t *order, int64_t rows, uint8_t *codes, uint8_t *out) {
    constexpr int bits = BITS[TIER];
    const int64_t wide = eights(dim);
    for (int64_t first = 0; first < rows; first += BLOCK) {
        const int64_t block = rows - first < BLOCK ? rows - first : BLOCK;
        for (int64_t n = 0; n < block; n++) {
            const int64_t row = order[first + n];
            code_row<TIER>(x + row * dim, scales[info[row] >> 3], dim, codes + n * wide);
        }
        const size_t count = size_t(block * wide);
        if constexpr (bits == 8) out = pack<8, 0>(codes, count, out);
        if constexpr (bits & 4) out = pack<4, 0>(codes, count, out);
        if constexpr (bits & 2) out = pack<2, bits & 4>(codes, count, out);
        if constexpr (bits & 1) out = pack<1, bits & 6>(codes, count, out);
    }
    return out;
}

}  // namespace

void measure(const Source &source, char *space) {
    mean_squares(source, {source, space}, static_cast<float *>(source.out));
}

void encode(const Source &source, char *memory) {
    const int dim = source.dim, h = dim & -dim;
    const int64_t rows = source.heads * source.tokens;
    const Space space(source, memory);
    float row[MOST_DIM], scales[32];
    uint8_t codes[BLOCK * MOST_DIM], *out = static_cast<uint8_t *>(source.out), *info = out + 2;
    memset(codes, 0, BLOCK * size_t(eights(dim)));  // those behind a row's end stay zero
    mean_squares(source, space, space.squares);
    rotate(space.x, rows, dim, source.dct, row);
    const int top = exponents(source, space.x, space.squares, space.order, info);
    out[0] = uint8_t(top), out[1] = uint8_t(top >> 8);
    for (int s = 0; s < 32; s++)
        scales[s] = float(UNIT / __builtin_sqrt(h) / __builtin_pow(2, double(top - 31 + s) / OCTAVE));
    out = info + rows;
    for (int tier = 1; tier < 8; tier++) {
        int64_t count = 0;
        for (int64_t row = 0; row < rows; row++)
            if ((info[row] & 7) == tier) space.order[count++] = row;
        of_tier(tier, [&]<int TIER> {
            out = code_rows<TIER>(space.x, info, scales, dim, space.order, count, codes, out);
        });
    }
}

void rotate(const Numbers &rows) {
    const int64_t dim = rows.dim, half = dim / 2;
    for (int64_t head = 0; head < rows.heads; head++) {
        float *row = static_cast<float *>(rows.numbers) + head * rows.apart;
        for (int64_t token = 0; token < rows.tokens; token++, row += dim)
            rotate_pairs(row, int(half), rows.cos + token * half, rows.sin + token * half);
    }
}

}  // namespace ISA
