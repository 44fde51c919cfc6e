// Work on torch's own threads: they spin for milliseconds after torch's last work, on the
// processors that threads of our own would need.
#pragma once

#include <exception>
#include <mutex>

// Call body(data) on `threads` threads at once, the caller's among them, and wait for all. On GNU's
// OpenMP where this process has it, as torch for Linux does; otherwise on new threads.
void on_threads(int threads, void (*body)(void *), void *data);

// The same of a callable. What it throws comes out of here, the first of them.
template <class Body> void on_threads(int threads, Body &body) {
    struct Shared {
        Body &body;
        std::mutex lock;
        std::exception_ptr error;
    } shared{body, {}, nullptr};
    on_threads(threads, [](void *data) {
        auto &own = *static_cast<Shared *>(data);
        try {
            own.body();
        } catch (...) {
            std::lock_guard guard(own.lock);
            if (!own.error) own.error = std::current_exception();
        }
    }, &shared);
    if (shared.error) std::rethrow_exception(shared.error);
}
