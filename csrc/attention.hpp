// Attention of few queries to many tokens: what attention.cpp checks, and attention_simd.cpp reads.
#pragma once
#include <cstdint>

constexpr int64_t PART = 512;  // tokens that a thread takes at once; whole blocks
constexpr int64_t TILE = 64;  // tokens whose scores are there together

// Numbers [batch, heads, tokens, dim]; steps from one to the next are in numbers.
struct View {
    const void *at;
    int64_t batch, head, token;
};

// Query heads of a group share a KV head: their queries, `rows` = group · fresh, are taken together.
struct Attention {
    int64_t batch, kv_heads, group, fresh, tokens, dim;
    View query, key, value;  // queries in float32
    bool half;               // keys and values in bfloat16, else in float32
    View mask;               // added to scores; nullptr if there is none
    float scale;
    int64_t first;           // tokens that are codes, before those of `key`
    const struct Piece *pieces;
    int64_t piece_count, parts;  // parts of a head, those of pieces first
    float *kept;  // [batch, kv_heads, parts, kept_of]: sums of each part, largest scores, weights
    float *out;   // [batch, fresh, heads, dim]
};

// Float32 that a thread needs beside what it reads and writes, and that are kept of a part; whole
// cache lines, at the beginning of one.
int64_t room_of(const Attention &order);
int64_t kept_of(const Attention &order);
