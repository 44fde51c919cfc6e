// Attention of few queries to many tokens, on all threads: the parts of a head are taken by
// whichever thread is free, then put together. The formula is in attention_simd.cpp.
#include "attention.hpp"

#include "bind.hpp"
#include "threads.hpp"

#include <algorithm>

namespace {

constexpr int64_t MOST_SIZE = 1 << 28;  // of any size

// Where numbers are, how many there are from there on, and the steps of a View.
using Given = std::array<int64_t, 5>;

View view(const Given &given, int64_t batch, int64_t heads, int64_t tokens, int64_t dim, int each = 4) {
    auto [address, there, by_batch, by_head, by_token] = given;
    require(0 <= there && there < MOST && (address || !there), "no such numbers");
    require(address % each == 0, "numbers are not aligned");
    int64_t last = dim;
    const std::pair<int64_t, int64_t *> steps[] = {
        {batch, &by_batch}, {heads, &by_head}, {tokens, &by_token}};
    for (const auto &[size, step] : steps) {
        if (size <= 1) *step = 0;
        if (size <= 1) continue;
        require(0 <= *step && *step <= there / (size - 1), "a step leaves the numbers");
        last += (size - 1) * *step;
    }
    require(!batch || !heads || !tokens || last <= there, "fewer numbers than the shape says");
    return {reinterpret_cast<const void *>(address), by_batch, by_head, by_token};
}

// Keys and values of some tokens as codes. Their memory is the caller's to keep.
class Codes {
public:
    using Spans = std::array<Span, 6>;  // codes, info, scales, mean, cos, sin

    Codes(int64_t heads, int64_t tokens, int dim, const Spans &keys, const Spans &values)
        : dim(dim) {
        require(dim == 64 || dim == 128 || dim == 256, "no kernel reads codes of this dim");
        require_size(heads, tokens, dim);
        require(heads < MOST_SIZE, "a size out of range");
        for (int n : {0, 1}) {
            const auto &[codes, info, scales, mean, cos, sin] = n ? values : keys;
            const auto [cosines, sines] = angles(cos, sin, tokens, dim);
            const Numbers none{nullptr, false, heads, tokens, 0, dim, cosines, sines, nullptr};
            parts[n] = checked_part(none, codes, info, scales, mean);
            before[n].resize((heads * parts_of(tokens) + 1) * 8);
            count(parts[n], before[n].data());
        }
    }

    const int dim;
    Part parts[2];
    std::vector<int64_t> before[2];

private:
    static void count(const Part &part, int64_t *before) {
        int64_t counts[8] = {};
        for (int64_t head = 0; head < part.heads; head++)
            for (int64_t token = 0; token < part.tokens; token++) {
                if (token % PART == 0) before = std::copy_n(counts, 8, before);
                counts[part.info[head * part.tokens + token] & 7]++;
            }
        std::copy_n(counts, 8, before);
    }
};

// The shape is `batch, kv_heads, group, fresh, tokens, dim`; of each piece so many tokens are used.
void attend(const std::array<int64_t, 6> &shape, const Given &query, const Given &key,
            const Given &value, const Given &mask, const Given &out, float scale, bool half,
            const std::vector<std::pair<const Codes *, int64_t>> &codes, int threads) {
    const auto [batch, kv_heads, group, fresh, tokens, dim] = shape;
    for (int64_t size : shape) require(0 <= size && size < MOST_SIZE, "a size out of range");
    require(dim && dim % TILE == 0, "no kernel for heads of this dim");
    const int64_t heads = kv_heads * group;
    require(heads < MOST_SIZE && fresh * heads < MOST_SIZE, "too many queries");
    Attention order{};
    order.batch = batch, order.kv_heads = kv_heads, order.group = group, order.fresh = fresh;
    order.tokens = tokens, order.dim = dim, order.rows = group * fresh;
    order.half = half, order.scale = scale, order.parts = parts_of(tokens);
    std::vector<Piece> pieces;
    for (const auto &[of, used] : codes) {
        const Part &keys = of->parts[0], &values = of->parts[1];
        require(of->dim == dim && keys.heads == kv_heads, "codes of another shape");
        require(0 <= used && used <= keys.tokens, "a piece has fewer tokens");
        const int64_t *before[] = {of->before[0].data(), of->before[1].data()};
        pieces.push_back({{keys, before[0]}, {values, before[1]}, order.first, used});
        order.first += used;
        order.parts += parts_of(used);
    }
    require(order.first + tokens < MOST_SIZE, "too many tokens");
    order.pieces = pieces.data(), order.piece_count = int64_t(pieces.size());
    order.query = view(query, batch, heads, fresh, dim);
    order.key = view(key, batch, kv_heads, tokens, dim, half ? 2 : 4);
    order.value = view(value, batch, kv_heads, tokens, dim, half ? 2 : 4);
    if (mask[0]) order.mask = view(mask, batch, 1, fresh, order.first + tokens);
    const Given dense = {out[0], out[1], fresh * heads * dim, dim, heads * dim};
    order.out = static_cast<float *>(const_cast<void *>(view(dense, batch, heads, fresh, dim).at));
    if (!batch || !heads || !fresh) return;
    nb::gil_scoped_release release;
    const int64_t whole = batch * kv_heads, units = whole * order.parts;
    const auto kept = lines(units * kept_of(order) * sizeof(float));
    order.kept = reinterpret_cast<float *>(kept.get());
    on_threads(threads, units, PICK(attend_space)(order), [&](size_t unit, char *space) {
        PICK(attend_part)(order, int64_t(unit), space);
    });
    for (int64_t head = 0; head < whole; head++) PICK(merge_parts)(order, head);
}

}  // namespace

void bind_attention(nb::module_ &m) {
    nb::class_<Codes>(m, "Piece")
        .def(nb::init<int64_t, int64_t, int, const Codes::Spans &, const Codes::Spans &>());
    m.def("attend", &attend);
}
