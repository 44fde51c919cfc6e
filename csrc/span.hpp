// Memory as every entry is given it.
#pragma once

#include <cstddef>
#include <cstdint>

// Memory that Python keeps, by its address and bytes.
struct Span {
    uintptr_t at;
    size_t size;

    template <class T> T *as() const { return reinterpret_cast<T *>(at); }
};
