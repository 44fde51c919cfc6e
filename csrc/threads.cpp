// See threads.hpp.
#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
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

struct Job {
    const size_t count, bytes;
    const std::function<void(size_t, char *)> &work;
    std::atomic<size_t> next{0};
    std::mutex lock;
    std::exception_ptr error;

    void take() {
        try {
            const auto space = lines(bytes);
            for (size_t number; (number = next++) < count;) work(number, space[0].bytes);
        } catch (...) {
            std::lock_guard guard(lock);
            if (!error) error = std::current_exception();
        }
    }
};

}  // namespace

void on_threads(int threads, size_t count, size_t bytes,
                const std::function<void(size_t, char *)> &work) {
    static const Parallel parallel = find_parallel();
    Job job{count, bytes, work, {}, {}, {}};
    void (*const body)(void *) = [](void *own) { static_cast<Job *>(own)->take(); };
    threads = int(std::min(size_t(std::max(threads, 1)), count));
    if (threads <= 1) {
        job.take();
    } else if (parallel) {
        parallel(body, &job, unsigned(threads), 0);
    } else {
        std::vector<std::thread> others;
        for (int n = 1; n < threads; n++) others.emplace_back(body, &job);
        body(&job);
        for (auto &other : others) other.join();
    }
    if (job.error) std::rethrow_exception(job.error);
}
