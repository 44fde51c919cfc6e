// What every file needs that Python calls.
#pragma once

#include "span.hpp"

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

// So many float32. Raises ValueError.
inline float *floats(Span span, int64_t count, const char *what) {
    require(span.size == size_t(count) * 4, what);
    require(span.at % 4 == 0, "floats are not aligned");
    return span.as<float>();
}
