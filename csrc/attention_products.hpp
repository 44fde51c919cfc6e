// Products of a few queries with a tile of tokens: scores = query * key, and sums of weight * value.
#pragma once
#include "attention.hpp"
#include "attention_softmax.hpp"

namespace ISA {
namespace {

// Memory is asked for before it is read: of few rows so many tokens before, of many rows little by
// little, so many bytes with each step of what is computed meanwhile.
constexpr int64_t TOKENS_SOON = 32, BYTES_SOON = 32;

// TILE keys to [dim, TILE], so that scores of neighbouring tokens lie side by side.
template <class T>
void transpose_keys(const T *keys, int64_t apart, int64_t dim, float *to) {
    for (int64_t token = 0; token < TILE; token += WIDE) {
        for (int64_t at = 0; at < dim; at += WIDE) {
            Floats vectors[WIDE];
            for (int n = 0; n < WIDE; n++) {
                vectors[n] = load(keys + (token + n) * apart + at);
            }
            transpose(vectors);
            for (int n = 0; n < WIDE; n++) store(to + (at + n) * TILE + token, vectors[n]);
        }
    }
}

// Scores of N queries and a tile of transposed keys; meanwhile memory from `soon` on comes.
template <int N>
void score(const float *queries, int64_t dim, const float *keys, float *to, const char *soon) {
    for (int64_t start = 0; start < TILE; start += WIDE * AT_ONCE) {
        Floats sums[N][AT_ONCE] = {};
        for (int64_t at = 0; at < dim; at++) {
            if (start == 0) __builtin_prefetch(soon + at * BYTES_SOON);
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
                __builtin_prefetch(key + TOKENS_SOON * apart + at);
                const Floats found = load(key + at);
                for (int r = 0; r < N; r++)
                    own[r] = fused(load(queries + r * dim + at), found, own[r]);
            }
            for (int r = 0; r < N; r++) parts[r][n] = own[r];
        }
        for (int r = 0; r < N; r++) store(to + r * TILE + token, sums(parts[r]));
    }
}

// Of N rows: `to` times what it shrinks by, and `count` values times their weights. Meanwhile memory
// from `soon` on comes; where there is none, later values do.
template <int N, class T>
void gather(const float *weights, const T *values, int64_t apart, int64_t count,
            const Known *known, float *to, int64_t dim, const char *soon) {
    for (int64_t start = 0; start < dim; start += WIDE * AT_ONCE) {
        Floats sums[N][AT_ONCE];
        for (int r = 0; r < N; r++)
            for (int n = 0; n < AT_ONCE; n++)
                sums[r][n] = load(to + r * dim + start + n * WIDE) * all(known[r].shrink);
        for (int64_t token = 0; token < count; token++) {
            const T *value = values + token * apart + start;
            Floats found[AT_ONCE];
            if (soon) __builtin_prefetch(soon + token * BYTES_SOON);
            for (int n = 0; n < AT_ONCE; n++) {
                if (!soon) __builtin_prefetch(value + TOKENS_SOON * apart + n * WIDE);
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

}  // namespace
}  // namespace ISA
