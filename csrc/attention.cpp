// Attention of few queries to many tokens, on all threads: the parts of a head are taken by whichever
// thread is free, then put together. The arithmetic is in attention_simd.cpp.
#include "attention.hpp"

#include "bind.hpp"
#include "isa.hpp"
#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <memory>

#define DECLARE(isa)                                            \
    namespace isa {                                             \
    void attend_part(const Attention &, int64_t, float *room);  \
    void merge_parts(const Attention &, int64_t);               \
    }
FOR_EACH_ISA(DECLARE)

int64_t kept_of(const Attention &order) {
    return (order.group * order.fresh * (order.dim + 2) + 15) / 16 * 16;
}

int64_t room_of(const Attention &order) {
    const int64_t rows = order.group * order.fresh;
    return (2 * TILE * order.dim + rows * (TILE + order.dim + 3) + 15) / 16 * 16;
}

namespace {

struct alignas(64) Line {
    float numbers[16];
};

std::unique_ptr<Line[]> lines(int64_t floats) {
    return std::make_unique_for_overwrite<Line[]>((floats + 15) / 16);
}

// Where numbers are, how many there are from there on, and the steps of a View.
using Given = std::array<int64_t, 5>;

View view(const Given &given, int64_t batch, int64_t heads, int64_t tokens, int64_t dim) {
    const auto [address, there, by_batch, by_head, by_token] = given;
    int64_t last = dim;
    for (auto [size, step] : {std::pair(batch, by_batch), {heads, by_head}, {tokens, by_token}}) {
        if (size <= 1) continue;
        require(0 <= step && step <= there / (size - 1), "attend: a step leaves the numbers");
        last += (size - 1) * step;
    }
    require(!batch || !heads || !tokens || last <= there, "attend: fewer numbers than its shape says");
    return {reinterpret_cast<const void *>(address), by_batch, by_head, by_token};
}

// The shape is `batch, kv_heads, group, fresh, tokens, dim`.
void attend(const std::array<int64_t, 6> &shape, const Given &query, const Given &key,
            const Given &value, const Given &mask, const Given &out, float scale, bool half,
            int threads) {
    const auto [batch, kv_heads, group, fresh, tokens, dim] = shape;
    for (int64_t size : {batch, kv_heads, group, fresh, tokens})
        require(0 <= size && size < 1 << 28, "attend: a size out of range");
    require(dim > 0 && dim <= 1024 && dim % TILE == 0, "attend: no kernel for this head_dim");
    Attention order{};
    order.batch = batch, order.kv_heads = kv_heads, order.group = group, order.fresh = fresh;
    order.tokens = tokens, order.dim = dim;
    const int64_t heads = kv_heads * group, whole = batch * kv_heads;
    order.query = view(query, batch, heads, fresh, dim);
    order.key = view(key, batch, kv_heads, tokens, dim);
    order.value = view(value, batch, kv_heads, tokens, dim);
    order.half = half, order.scale = scale;
    order.parts = (tokens + PART - 1) / PART;
    if (mask[0]) order.mask = view(mask, batch, 1, fresh, order.first + tokens);
    order.out = const_cast<float *>(static_cast<const float *>(
        view({out[0], out[1], fresh * heads * dim, dim, heads * dim}, batch, heads, fresh, dim).at));
    nb::gil_scoped_release release;
    const int64_t units = whole * order.parts;
    const auto kept = lines(units * kept_of(order));
    order.kept = kept[0].numbers;
    std::atomic<int64_t> next = 0;
    auto work = [&] {
        const auto room = lines(room_of(order));
        for (int64_t unit; (unit = next++) < units;)
            PICK(attend_part)(order, unit, room[0].numbers);
    };
    on_threads(int(std::min<int64_t>(threads, units)), work);
    for (int64_t n = 0; n < whole; n++) PICK(merge_parts)(order, n);
}

}  // namespace

void bind_attention(nb::module_ &m) {
    using namespace nb::literals;
    m.def("attend", &attend, "shape"_a, "query"_a, "key"_a, "value"_a, "mask"_a, "out"_a, "scale"_a,
          "half"_a, "threads"_a);
}
