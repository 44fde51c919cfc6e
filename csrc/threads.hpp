// Work on torch's own threads: they spin for milliseconds after torch's last work, on the
// processors that threads of our own would need.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

struct alignas(64) CacheLine {
    char bytes[64];
};

// Memory that begins with a cache line.
inline std::unique_ptr<CacheLine[]> lines(size_t bytes) {
    return std::make_unique_for_overwrite<CacheLine[]>(bytes / sizeof(CacheLine) + 1);
}

// Call work(n, space) for all n below `count` on at most `threads` threads, the caller's among them,
// and wait for the end. Each thread has a `space` of its own, of so many `bytes`. What a call throws
// comes out of here, the first of them. On GNU's OpenMP where this process has it, as torch for Linux
// does; otherwise on new threads.
void on_threads(int threads, size_t count, size_t bytes,
                const std::function<void(size_t number, char *space)> &work);
