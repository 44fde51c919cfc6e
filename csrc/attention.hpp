// Attention of few queries to many tokens: what attention.cpp checks and attention_simd.cpp reads.
#pragma once
#include "decode.hpp"

constexpr int64_t PART = 512;  // tokens that a thread takes at once; whole tiles
constexpr int64_t TILE = 64;   // tokens whose scores are there together

// Numbers [batch, heads, tokens, dim]; steps from one to the next are in numbers.
struct View {
    const void *at;
    int64_t batch, head, token;
};

// Keys or values as codes, and of each tier how many rows there are before each part of each head,
// [heads * parts + 1, 8]: the last are all of them.
struct Coded {
    Part part;
    const int64_t *before;
};

// Some tokens of all sequences, `first` and on; `used` of them count.
struct Piece {
    Coded keys, values;
    int64_t first, used;
};

// Query heads of a group share a KV head: their queries, rows = group * fresh, are taken together.
struct Attention {
    int64_t batch, kv_heads, group, fresh, tokens, dim, rows;
    View query, key, value;  // queries in float32
    bool half;               // keys and values in bfloat16, else in float32
    View mask;               // added to scores; nullptr if there is none
    float scale;
    const Piece *pieces;     // their tokens come before those of `key`
    int64_t piece_count, first, parts;  // tokens of pieces; parts of a head
    float *kept;  // [batch, kv_heads, parts, kept_of]: sums of each part, largest scores, weights
    float *out;   // [batch, fresh, heads, dim]
};

static constexpr int64_t parts_of(int64_t tokens) { return (tokens + PART - 1) / PART; }

// Float32 that are kept of a part; whole cache lines.
static constexpr int64_t kept_of(const Attention &order) {
    return (order.rows * (order.dim + 2) + 15) / 16 * 16;
}

#define DECLARE(isa) \
    namespace isa { \
    /* One part of one head, into what is kept of it; `space` is a thread's own. */ \
    void attend_part(const Attention &order, int64_t unit, char *space); \
    size_t attend_space(const Attention &order); \
    void merge_parts(const Attention &order, int64_t head); \
    }
FOR_EACH_ISA(DECLARE)
#undef DECLARE
