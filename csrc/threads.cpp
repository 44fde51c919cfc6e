// See threads.hpp.
#include "threads.hpp"

#include <thread>
#include <vector>

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace {

using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);

Parallel find_parallel() {
#ifdef _WIN32
    return nullptr;
#else
    return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

}  // namespace

void on_threads(int threads, void (*body)(void *), void *data) {
    static const Parallel parallel = find_parallel();
    if (threads <= 1) {
        body(data);
    } else if (parallel) {
        parallel(body, data, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int n = 1; n < threads; n++) others.emplace_back(body, data);
        body(data);
        for (auto &other : others) other.join();
    }
}
