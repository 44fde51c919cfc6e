// Attention of few queries to one part of a head's tokens (FlashDecoding), whose scores are never all
// there (FlashAttention, arXiv:2205.14135). See docs/attention.md.
#include "attention_softmax.hpp"

namespace ISA {
namespace {

constexpr int64_t MANY = 3 * ROWS;  // rows that are work enough for memory to come meanwhile
// Memory that is on its way. For many rows it comes little by little in all that is done with a
// block: a product that asks for more than can be under way at once has to wait.
constexpr int64_t AHEAD = 32;  // tokens
constexpr int64_t SOON = 32;   // bytes

// What a thread has for itself, float32.
struct Room {
    float *keys;     // a block, transposed: [dim, TILE]
    float *scores;   // [rows, TILE]
    float *spare;    // a block of keys, some of which are none
    float *queries;  // [rows, dim]
    float *peaks, *totals, *shrinks;  // of rows
};

Room divide(const Attention &order, float *room) {
    const int64_t rows = order.group * order.fresh, block = TILE * order.dim;
    float *scores = room + block, *spare = scores + rows * TILE, *queries = spare + block;
    float *peaks = queries + rows * order.dim;
    return {room, scores, spare, queries, peaks, peaks + rows, peaks + 2 * rows};
}

void fetch(const void *at, int64_t bytes) {
    __builtin_prefetch(static_cast<const char *>(at) + bytes);
}

// TILE keys to [dim, TILE], so that scores of neighbouring tokens lie side by side.
template <class T>
void transpose_keys(const T *keys, int64_t apart, int64_t dim, bool ahead, float *to) {
    for (int64_t token = 0; token < TILE; token += WIDE) {
        for (int64_t at = 0; at < dim; at += WIDE) {
            Floats vectors[WIDE];
            for (int n = 0; n < WIDE; n++) {
                const T *key = keys + (token + n) * apart + at;
                if (ahead) fetch(key + AHEAD * apart, 0);
                vectors[n] = load(key);
            }
            transpose(vectors);
            for (int n = 0; n < WIDE; n++) store(to + (at + n) * TILE + token, vectors[n]);
        }
    }
}

// Scores of N queries and a block of transposed keys; memory from `soon` on comes meanwhile.
template <int N>
void score(const float *queries, int64_t dim, const float *keys, float *to, const void *soon) {
    for (int64_t start = 0; start < TILE; start += WIDE * AT_ONCE) {
        Floats sums[N][AT_ONCE] = {};
        for (int64_t at = 0; at < dim; at++) {
            if (start == 0) fetch(soon, at * SOON);
            Floats key[AT_ONCE];
            for (int n = 0; n < AT_ONCE; n++) key[n] = load(keys + at * TILE + start + n * WIDE);
            for (int r = 0; r < N; r++) {
                const Floats query = all(queries[r * dim + at]);
                for (int n = 0; n < AT_ONCE; n++) sums[r][n] = fused(query, key[n], sums[r][n]);
            }
        }
        for (int r = 0; r < N; r++)
            for (int n = 0; n < AT_ONCE; n++) store(to + r * TILE + start + n * WIDE, sums[r][n]);
    }
}

// The same of keys as they are: for so few rows to sum across vectors costs less than to transpose.
template <int N, class T>
void dot(const float *queries, const T *keys, int64_t apart, int64_t dim, float *to) {
    for (int64_t token = 0; token < TILE; token += WIDE) {
        Floats parts[N][WIDE];
        for (int n = 0; n < WIDE; n++) {
            const T *key = keys + (token + n) * apart;
            Floats own[N] = {};
            for (int64_t at = 0; at < dim; at += WIDE) {
                fetch(key + AHEAD * apart + at, 0);
                const Floats found = load(key + at);
                for (int r = 0; r < N; r++) own[r] = fused(load(queries + r * dim + at), found, own[r]);
            }
            for (int r = 0; r < N; r++) parts[r][n] = own[r];
        }
        for (int r = 0; r < N; r++) store(to + r * TILE + token, sums(parts[r]));
    }
}

// Of N rows: `to` times what it shrinks by, and `count` values times their weights. Later values come
// meanwhile, or for many rows memory from `soon` on.
template <int N, class T>
void gather(const float *weights, const T *values, int64_t apart, int64_t count,
            const float *shrinks, float *to, int64_t dim, const void *soon) {
    for (int64_t start = 0; start < dim; start += WIDE * AT_ONCE) {
        Floats sums[N][AT_ONCE];
        for (int r = 0; r < N; r++)
            for (int n = 0; n < AT_ONCE; n++)
                sums[r][n] = load(to + r * dim + start + n * WIDE) * all(shrinks[r]);
        for (int64_t token = 0; token < count; token++) {
            const T *value = values + token * apart + start;
            Floats found[AT_ONCE];
            if (soon) fetch(soon, token * SOON);
            for (int n = 0; n < AT_ONCE; n++) {
                if (!soon) fetch(value + AHEAD * apart + n * WIDE, 0);
                found[n] = load(value + n * WIDE);
            }
            for (int r = 0; r < N; r++) {
                const Floats weight = all(weights[r * TILE + token]);
                for (int n = 0; n < AT_ONCE; n++) sums[r][n] = fused(weight, found[n], sums[r][n]);
            }
        }
        for (int r = 0; r < N; r++)
            for (int n = 0; n < AT_ONCE; n++) store(to + r * dim + start + n * WIDE, sums[r][n]);
    }
}

// Call `f` with `rows`, 1 to ROWS, as a constant.
template <class F> void of_rows(int64_t rows, F f) {
    if (rows == 1) f.template operator()<1>();
    else if (rows == 2) f.template operator()<2>();
    else if (rows == 3) f.template operator()<3>();
    else f.template operator()<4>();
}

// `count` keys and values from token `first` of all on: a block of keys, `sums [rows, dim]`.
template <class T>
void attend_tile(const Attention &order, int64_t batch, int64_t first, int64_t count, const T *keys,
                  int64_t keys_apart, const T *values, int64_t values_apart, const Room &room,
                  float *sums) {
    const int64_t dim = order.dim, rows = order.group * order.fresh;
    auto some = [rows](int64_t row) { return rows - row < ROWS ? rows - row : ROWS; };
    if (rows <= ROWS) {
        of_rows(rows, [&]<int N> { dot<N>(room.queries, keys, keys_apart, dim, room.scores); });
    } else {
        transpose_keys(keys, keys_apart, dim, rows < MANY, room.keys);
        for (int64_t row = 0; row < rows; row += ROWS) {
            const char *soon = reinterpret_cast<const char *>(values) + row / ROWS * SOON * dim;
            of_rows(some(row), [&]<int N> {
                score<N>(room.queries + row * dim, dim, room.keys, room.scores + row * TILE, soon);
            });
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        const float *mask = static_cast<const float *>(order.mask.at);
        if (mask) {
            mask += batch * order.mask.batch + row % order.fresh * order.mask.token + first;
            if (count < TILE) {  // what is behind it is not ours to read
                __builtin_memcpy(room.spare, mask, count * sizeof(float));
                mask = room.spare;
            }
        }
        weigh(room.scores + row * TILE, mask, count,
              {room.peaks + row, room.totals + row, room.shrinks + row});
    }
    for (int64_t row = 0; row < rows; row += ROWS) {
        const char *soon = nullptr;
        if (rows >= MANY)  // the next keys
            soon = reinterpret_cast<const char *>(keys + TILE * keys_apart) + row / ROWS * SOON * TILE;
        of_rows(some(row), [&]<int N> {
            gather<N>(room.scores + row * TILE, values, values_apart, count, room.shrinks + row,
                      sums + row * dim, dim, soon);
        });
    }
}

// To the tokens that are numbers, from `start` on.
template <class T>
void attend_numbers(const Attention &order, int64_t batch, int64_t head, int64_t start,
                    const Room &room, float *sums) {
    const T *keys = static_cast<const T *>(order.key.at), *values = static_cast<const T *>(order.value.at);
    keys += batch * order.key.batch + head * order.key.head;
    values += batch * order.value.batch + head * order.value.head;
    const int64_t stop = order.tokens < start + PART ? order.tokens : start + PART;
    for (int64_t token = start; token < stop; token += TILE) {
        const int64_t count = stop - token < TILE ? stop - token : TILE;
        const T *key = keys + token * order.key.token;
        int64_t apart = order.key.token;
        if (count < TILE) {  // what is behind them is not ours to read
            T *padded = reinterpret_cast<T *>(room.spare);
            __builtin_memset(padded, 0, TILE * order.dim * sizeof(T));
            for (int64_t n = 0; n < count; n++)
                __builtin_memcpy(padded + n * order.dim, key + n * apart, order.dim * sizeof(T));
            key = padded, apart = order.dim;
        }
        attend_tile(order, batch, order.first + token, count, key, apart,
                     values + token * order.value.token, order.value.token, room, sums);
    }
}

}  // namespace

// One part of one head of one sequence, into what is kept of it; `of` is room for a thread.
void attend_part(const Attention &order, int64_t unit, float *of) {
    const int64_t dim = order.dim, rows = order.group * order.fresh;
    const int64_t batch = unit / order.parts / order.kv_heads;
    const int64_t head = unit / order.parts % order.kv_heads;
    const Room room = divide(order, of);
    const View &query = order.query;
    for (int64_t row = 0; row < rows; row++) {
        const float *from = static_cast<const float *>(query.at) + batch * query.batch;
        from += (head * order.group + row / order.fresh) * query.head + row % order.fresh * query.token;
        for (int64_t i = 0; i < dim; i++) room.queries[row * dim + i] = from[i] * order.scale;
        room.peaks[row] = LOWEST, room.totals[row] = 0;
    }
    float *sums = order.kept + unit * kept_of(order);
    __builtin_memset(sums, 0, rows * dim * sizeof(float));
    const int64_t start = unit % order.parts * PART;
    if (order.half) attend_numbers<uint16_t>(order, batch, head, start, room, sums);
    else attend_numbers<float>(order, batch, head, start, room, sums);
    __builtin_memcpy(sums + rows * dim, room.peaks, 2 * rows * sizeof(float));
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
