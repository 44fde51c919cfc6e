// What every file needs that Python calls: how memory gets here, and checks that it is what it has
// to be (docs/cachecard.md 4, `packed`, says what that is).
#pragma once

#include "decode.hpp"

#include <cstdint>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

// From Python's (address, bytes), or from what has contiguous memory, as NumPy's arrays do. Address 0
// has no bytes.
template <> struct nb::detail::type_caster<Span> {
    NB_TYPE_CASTER(Span, const_name("tuple[int, int] | Buffer"))
    bool from_python(handle source, uint8_t flags, cleanup_list *cleanup) noexcept {
        Py_buffer buffer;
        if (PyObject_CheckBuffer(source.ptr())) {
            if (PyObject_GetBuffer(source.ptr(), &buffer, PyBUF_SIMPLE)) return PyErr_Clear(), false;
            value = {uintptr_t(buffer.buf), size_t(buffer.len)};
            PyBuffer_Release(&buffer);
            return true;
        }
        make_caster<std::pair<uintptr_t, size_t>> pair;
        if (!pair.from_python(source, flags, cleanup)) return false;
        const auto [at, size] = pair.operator std::pair<uintptr_t, size_t>();
        value = {at, size};
        return at || !size;
    }
    static handle from_cpp(Span, rv_policy, cleanup_list *) noexcept { return {}; }
};

// Raise ValueError, before anything is written.
inline void require(bool holds, const char *what) {
    if (!holds) throw nb::value_error(what);
}

// So many float32.
inline float *floats(Span span, int64_t count, const char *what) {
    require(span.size == size_t(count) * 4, what);
    require(span.at % 4 == 0, "floats are not aligned");
    return span.as<float>();
}

constexpr int64_t MOST = int64_t(1) << 40;  // numbers of a part, so that no product overflows

inline void require_size(int64_t heads, int64_t tokens, int64_t dim) {
    require(heads >= 0 && tokens >= 0 && heads < MOST && tokens < MOST
                && heads * (tokens >> 20) < (MOST >> 20) / dim, "a part is too large");
}

// Cosines and sines [tokens, dim / 2]; null where nothing is rotated.
inline std::pair<const float *, const float *> angles(Span cos, Span sin, int64_t tokens, int dim) {
    require(!cos.at == !sin.at, "cosines and sines come together");
    if (!cos.at) return {};
    require(dim % 2 == 0, "an odd dim has no pairs to rotate");
    return {floats(cos, tokens * (dim / 2), "a token has dim / 2 cosines"),
            floats(sin, tokens * (dim / 2), "a token has dim / 2 sines")};
}

// Memory, whether bfloat16, heads, tokens, apart, dim, cosines, sines, DCT: see Numbers.
using GivenNumbers = std::tuple<Span, bool, int64_t, int64_t, int64_t, int, Span, Span, Span>;

inline Numbers checked(const GivenNumbers &given) {
    const auto &[numbers, half, heads, tokens, apart, dim, cos, sin, dct] = given;
    require(dim > 0 && dim <= MOST_DIM && (dim & -dim) <= 256, "no kernel has rows of this dim");
    const int64_t m = dim / (dim & -dim), each = half ? 2 : 4;
    require_size(heads, tokens, dim);
    require(heads <= 1 || (apart >= tokens * dim && apart < MOST / heads), "heads overlap");
    const int64_t reach = heads && tokens ? (heads - 1) * apart + tokens * dim : 0;
    require(numbers.size >= size_t(reach * each), "numbers have too little memory");
    require(numbers.at % each == 0, "numbers are not aligned");
    const auto [cosines, sines] = angles(cos, sin, tokens, dim);
    // One head has no next one: a step from it would leave every memory.
    return {numbers.as<void>(), half, heads, tokens, heads > 1 ? apart : 0, dim, cosines, sines,
            floats(dct, m * m, "the DCT is not that of the dim's odd factor")};
}
