// Attention of few queries to one part of a head's tokens (FlashDecoding), whose scores are never
// all there (FlashAttention, arXiv:2205.14135): softmax(scale * query * key + mask) * value. Tokens
// that are codes (docs/cachecard.md 4, `packed`) become numbers a tile at a time.
#include "attention_products.hpp"
#include "blocks.hpp"

namespace ISA {
namespace {

constexpr int64_t MANY = 3 * ROWS;  // rows from which on it pays to transpose keys

// What a thread has for itself.
struct Space {
    float *keys;     // a tile, transposed: [dim, TILE]
    float *scores;   // [rows, TILE]
    float *spare;    // what ends within a tile
    float *queries;  // [rows, dim]
    Known *known;    // of rows
    float *decoded[2];                // tiles of keys and values that were codes
    char *rows[2];                    // what they are decoded in
};

// Have it lie at `memory`, if there is any; returns its bytes.
size_t divide(const Attention &order, char *memory, Space &of) {
    const int64_t dim = order.dim, rows = order.rows;
    size_t at = 0;
    auto take = [&]<class T>(T *&place, int64_t count) {
        place = memory ? reinterpret_cast<T *>(memory + at) : nullptr;
        at += (count * sizeof(T) + 63) / 64 * 64;
    };
    take(of.keys, TILE * dim), take(of.scores, TILE * rows), take(of.spare, TILE * dim);
    take(of.queries, rows * dim), take(of.known, rows);
    if (!order.piece_count) return at;
    for (int n = 0; n < 2; n++)
        take(of.decoded[n], TILE * dim), take(of.rows[n], decode_space(int(dim)));
    return at;
}

// `count` keys and values from token `first` of all on, of which there is a tile of keys.
template <class T>
void attend_tile(const Attention &order, int64_t batch, int64_t first, int64_t count,
                 const T *keys, int64_t keys_apart, const T *values, int64_t values_apart,
                 const Space &space, float *sums) {
    const int64_t dim = order.dim, rows = order.rows;
    auto some = [rows](int64_t row) { return rows - row < ROWS ? rows - row : ROWS; };
    const bool many = rows >= MANY;
    if (many) transpose_keys(keys, keys_apart, dim, space.keys);
    // While scores are computed the values come, then the next keys.
    const char *soon = reinterpret_cast<const char *>(values);
    for (int64_t row = 0; row < rows; row += ROWS)
        of_rows(some(row), [&]<int N> {
            const float *queries = space.queries + row * dim;
            float *scores = space.scores + row * TILE;
            if (many) score<N>(queries, dim, space.keys, scores, soon + row / ROWS * BYTES_SOON * dim);
            else dot<N>(queries, keys, keys_apart, dim, scores);
        });
    for (int64_t row = 0; row < rows; row++) {
        const float *mask = static_cast<const float *>(order.mask.at);
        if (mask) {
            mask += batch * order.mask.batch + row % order.fresh * order.mask.token + first;
            if (count < TILE) {  // what is behind it is not ours to read
                __builtin_memcpy(space.spare, mask, count * sizeof(float));
                mask = space.spare;
            }
        }
        weigh(space.scores + row * TILE, mask, count, space.known[row]);
    }
    soon = reinterpret_cast<const char *>(keys + TILE * keys_apart);
    for (int64_t row = 0; row < rows; row += ROWS)
        of_rows(some(row), [&]<int N> {
            const char *next = many ? soon + row / ROWS * BYTES_SOON * TILE : nullptr;
            gather<N>(space.scores + row * TILE, values, values_apart, count, space.known + row,
                      sums + row * dim, dim, next);
        });
}

// To the tokens that are numbers, from `start` on.
template <class T>
void attend_numbers(const Attention &order, int64_t batch, int64_t head, int64_t start,
                    const Space &space, float *sums) {
    const View &key_at = order.key, &value_at = order.value;
    const T *keys = static_cast<const T *>(key_at.at) + batch * key_at.batch + head * key_at.head;
    const T *values = static_cast<const T *>(value_at.at);
    values += batch * value_at.batch + head * value_at.head;
    const int64_t stop = order.tokens < start + PART ? order.tokens : start + PART;
    for (int64_t token = start; token < stop; token += TILE) {
        const int64_t count = stop - token < TILE ? stop - token : TILE;
        const T *key = keys + token * order.key.token;
        int64_t apart = order.key.token;
        if (count < TILE) {  // what is behind them is not ours to read
            T *padded = reinterpret_cast<T *>(space.spare);
            __builtin_memset(padded, 0, TILE * order.dim * sizeof(T));
            for (int64_t n = 0; n < count; n++)
                __builtin_memcpy(padded + n * order.dim, key + n * apart, order.dim * sizeof(T));
            key = padded, apart = order.dim;
        }
        attend_tile(order, batch, order.first + token, count, key, apart,
                     values + token * order.value.token, order.value.token, space, sums);
    }
}

// To part `part` of a piece.
void attend_codes(const Attention &order, const Piece &piece, int64_t batch, int64_t head,
                  int64_t part, const Space &space, float *sums) {
    const int64_t dim = order.dim, parts = parts_of(piece.keys.part.tokens);
    const int64_t own = head * parts + part, all = order.kv_heads * parts;
    auto rows_of = [&](const Coded &of, char *memory) {
        return Rows(of.part, of.before + all * 8, of.before + own * 8, memory);
    };
    Rows keys = rows_of(piece.keys, space.rows[0]), values = rows_of(piece.values, space.rows[1]);
    const int64_t start = part * PART, end = start + PART;
    const int64_t stop = piece.used < end ? piece.used : end;
    for (int64_t token = start; token < stop; token += TILE) {
        const int64_t count = stop - token < TILE ? stop - token : TILE;
        write_rows(keys, piece.keys.part, head, token, count, space.decoded[0]);
        write_rows(values, piece.values.part, head, token, count, space.decoded[1]);
        attend_tile(order, batch, piece.first + token, count, space.decoded[0], dim,
                    space.decoded[1], dim, space, sums);
    }
}

}  // namespace

size_t attend_space(const Attention &order) {
    Space of;
    return divide(order, nullptr, of);
}

void attend_part(const Attention &order, int64_t unit, char *memory) {
    const int64_t dim = order.dim, rows = order.rows;
    const int64_t batch = unit / order.parts / order.kv_heads;
    const int64_t head = unit / order.parts % order.kv_heads;
    Space space;
    divide(order, memory, space);
    const View &query = order.query;
    for (int64_t row = 0; row < rows; row++) {
        const float *from = static_cast<const float *>(query.at) + batch * query.batch;
        from += (head * order.group + row / order.fresh) * query.head;
        from += row % order.fresh * query.token;
        for (int64_t i = 0; i < dim; i++) space.queries[row * dim + i] = from[i] * order.scale;
        space.known[row] = {LOWEST, 0, 1};
    }
    float *sums = order.kept + unit * kept_of(order);
    __builtin_memset(sums, 0, rows * dim * sizeof(float));
    int64_t part = unit % order.parts, n = 0;
    for (; n < order.piece_count && part >= parts_of(order.pieces[n].used); n++)
        part -= parts_of(order.pieces[n].used);
    if (n < order.piece_count) attend_codes(order, order.pieces[n], batch, head, part, space, sums);
    else if (order.half) attend_numbers<uint16_t>(order, batch, head, part * PART, space, sums);
    else attend_numbers<float>(order, batch, head, part * PART, space, sums);
    for (int64_t row = 0; row < rows; row++) {
        sums[rows * dim + row] = space.known[row].peak;
        sums[rows * dim + rows + row] = space.known[row].total;
    }
}

// The parts of a head in the proportion of their sums.
void merge_parts(const Attention &order, int64_t whole) {
    const int64_t dim = order.dim, rows = order.group * order.fresh, each = kept_of(order);
    const int64_t batch = whole / order.kv_heads, heads = order.kv_heads * order.group;
    const float *kept = order.kept + whole * order.parts * each;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = batch * order.fresh + row % order.fresh;
        const int64_t head = whole % order.kv_heads * order.group + row / order.fresh;
        const float *peaks = kept + rows * dim + row, *totals = peaks + rows;
        float *out = order.out + (token * heads + head) * dim, peak = LOWEST, total = 0;
        __builtin_memset(out, 0, dim * sizeof(float));
        for (int64_t part = 0; part < order.parts; part++)
            peak = peak > peaks[part * each] ? peak : peaks[part * each];
        for (int64_t part = 0; part < order.parts; part++) {
            const float share = exp(all(peaks[part * each] - peak))[0];
            const float *sums = kept + part * each + row * dim;
            total += share * totals[part * each];
            for (int64_t i = 0; i < dim; i++) out[i] += share * sums[i];
        }
        for (int64_t i = 0; i < dim; i++) out[i] /= total;
    }
}

}  // namespace ISA
