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

// From Python's (address, bytes).
template <> struct nb::detail::type_caster<Span> {
    NB_TYPE_CASTER(Span, const_name("tuple[int, int]"))
    bool from_python(handle source, uint8_t flags, cleanup_list *cleanup) noexcept {
        make_caster<std::pair<uintptr_t, size_t>> pair;
        if (!pair.from_python(source, flags, cleanup)) return false;
        const auto [at, size] = pair.operator std::pair<uintptr_t, size_t>();
        value = {at, size};
        return true;
    }
    static handle from_cpp(Span, rv_policy, cleanup_list *) noexcept { return {}; }
};

// Raise ValueError, before anything is written.
inline void require(bool holds, const char *what) {
    if (!holds) throw nb::value_error(what);
}
