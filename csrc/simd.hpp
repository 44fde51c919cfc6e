// Vectors as GCC and Clang have them, as wide as the processor's, and shuffles of their lanes.
// Included by files *_simd.cpp only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ISA {
namespace {

#if defined(__AVX512BW__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int QUARTER = 16;  // bytes that vectors are made of: what single instructions shuffle

template <class T> struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
};
template <class T> using V = typename Vector<T>::type;
template <class T> constexpr int LANES = BYTES / int(sizeof(T));
using Bytes = V<uint8_t>;
using Shorts = V<int16_t>;
using Ints = V<int32_t>;
using Floats = V<float>;

template <class T> V<T> load(const T *from) { return *reinterpret_cast<const V<T> *>(from); }
template <class T> void store(T *to, V<T> vector) { *reinterpret_cast<V<T> *>(to) = vector; }

// Lane i of the result is lane at(i) of both vectors, one behind the other.
template <class T, class At, int... I>
V<T> pick(V<T> a, V<T> b, At, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, At::at(I)...);
}
template <class T, class At> V<T> pick(V<T> a, V<T> b) {
    return pick<T>(a, b, At{}, std::make_integer_sequence<int, LANES<T>>{});
}

template <class T, class First, class Second> void shuffle(V<T> &a, V<T> &b) {
    const V<T> first = pick<T, First>(a, b);
    b = pick<T, Second>(a, b);
    a = first;
}

// Of every span of both vectors the even runs, or the odd ones: first those of `a`, then of `b`.
template <class T, int RUN, int SPAN, int ODD> struct Runs {
    static constexpr int at(int i) {
        const int in = i % SPAN, from = in % (SPAN / 2);
        const int place = from / RUN * 2 * RUN + ODD * RUN + from % RUN;
        return i / SPAN * SPAN + place + (in >= SPAN / 2 ? LANES<T> : 0);
    }
};

// The lower halves, or the upper, of all quarters of both vectors, number by number in turn.
template <class T, int HIGH> struct Turns {
    static constexpr int at(int i) {
        constexpr int Q = QUARTER / int(sizeof(T));
        return i / Q * Q + HIGH * Q / 2 + i % Q / 2 + (i & 1 ? LANES<T> : 0);
    }
};

}  // namespace
}  // namespace ISA
