// A line of parts to be decoded (docs/cachecard.md 4, `packed`), which threads share. Each part is
// checked when it is added; a thread takes the next one and gives it to `decode` of decode_simd.cpp.
//
// From here on read: decode.hpp (what a part is), decode_simd.cpp (its heads), blocks.hpp (blocks of codes
// to levels, and a row to numbers), lookup.hpp (levels), rotation.hpp (transforms).
#include "decode.hpp"
#include "bind.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

int64_t widths(Span info) {
    int64_t bits = 0;
    for (size_t n = 0; n < info.size; n++) bits += BITS[info.as<const uint8_t>()[n] & 7];
    return bits;
}

Part checked_part(const Numbers &numbers, Span codes, Span info, Span scales, Span mean) {
    const int64_t heads = numbers.heads, dim = numbers.dim;
    require(info.size == size_t(heads * numbers.tokens), "a row has one byte");
    require(codes.size >= size_t(widths(info) * (eights(dim) / 8)), "rows have more codes than there are");
    return {numbers, codes.as<const uint8_t>(), info.as<const uint8_t>(), floats(scales, 32, "scales are 32"),
            mean.at ? floats(mean, heads * dim, "a head has one mean") : nullptr, int64_t(codes.size)};
}

namespace {

class Line {
public:
    explicit Line(size_t capacity) {
        require(capacity <= 1 << 20, "a line is not for so many parts");
        done_.reset(new std::atomic<bool>[capacity]{});
        parts_.reserve(capacity);
    }

    ~Line() { stop(); }

    // The memory is `owner`'s, which is kept until the part is decoded, and let go by a later call.
    void add(const GivenNumbers &given, Span codes, Span info, Span scales, Span mean, nb::object owner) {
        require(parts_.size() < parts_.capacity(), "the line is full");
        const Part part = checked_part(checked(given), codes, info, scales, mean);
        space_ = std::max(space_, decode_space(part.dim));
        for (size_t n = 0; n < owners_.size(); n++)
            if (done_[n]) owners_[n].reset();
        parts_.push_back(part);
        owners_.push_back(std::move(owner));
        waiting_ += part.heads * part.tokens * part.dim;
        ready_.fetch_add(1);
        ready_.notify_one();
    }

    // Take parts until those that nobody has begun have at most so many numbers.
    void decode(int64_t waiting) {
        if (waiting_ <= waiting) return;
        std::unique_ptr<char[]> space(new char[space_]);
        while (waiting_ > waiting && decode_next(space.get())) {}
    }

    // Have another thread take parts until the line is closed.
    void start() {
        require(!other_.joinable() && !closed_, "the line has another thread");
        std::unique_ptr<char[]> own(new char[decode_space(MOST_DIM)]);
        other_ = std::thread([this, space = std::move(own)] {
            while (!closed_) {
                const size_t seen = ready_;
                if (!decode_next(space.get()) && !closed_) ready_.wait(seen);
            }
        });
    }

    // What nobody has begun is nobody's; what the other thread is at is waited for.
    void close() {
        stop();
        if (damaged_) throw std::runtime_error("the bytes of a layer changed while it was decoded");
    }

    int64_t waiting() const { return waiting_; }

private:
    void stop() {
        closed_ = true;
        ready_.fetch_add(CLOSED);  // who waits for more sees a change
        ready_.notify_all();
        if (other_.joinable()) other_.join();
    }

    static constexpr size_t CLOSED = size_t(1) << 48;

    bool decode_next(char *space) {
        size_t at = next_;
        do {
            if (closed_ || at >= ready_) return false;
        } while (!next_.compare_exchange_weak(at, at + 1));
        const Part &part = parts_[at];
        waiting_ -= part.heads * part.tokens * part.dim;
        if (!PICK(decode)(part, space)) damaged_ = true;
        done_[at] = true;
        return true;
    }

    std::vector<Part> parts_;  // never moved, so threads read what is ready
    std::vector<nb::object> owners_;
    size_t space_ = 0;  // bytes that a part needs at most
    std::atomic<size_t> next_{0}, ready_{0};
    std::atomic<int64_t> waiting_{0};  // numbers
    std::atomic<bool> closed_{false}, damaged_{false};
    std::unique_ptr<std::atomic<bool>[]> done_;
    std::thread other_;
};

}  // namespace

void bind_decode(nb::module_ &m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    m.def("widths", &widths);
    nb::class_<Line>(m, "Line")
        .def(nb::init<size_t>())
        .def("add", &Line::add)
        .def("decode", &Line::decode, nb::arg("waiting") = 0, release())
        .def("start", &Line::start)
        .def("close", &Line::close, release())
        .def_prop_ro("waiting", &Line::waiting);
}
