// Checks of what encode_simd.cpp is given: docs/cachecard.md 4, `packed`.
#include "encode.hpp"
#include "bind.hpp"

#include <algorithm>
#include <memory>

namespace {

// numbers, whether bfloat16, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out
using Given = std::tuple<Span, bool, int64_t, int64_t, int64_t, int, Span, Span, Span, Span, Span, Span>;

Source checked(const Given &given, bool coded) {
    const auto &[numbers, half, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out] = given;
    require_dim(dim, dct);
    require_size(heads, tokens, dim);
    const int64_t needed = reach(heads, tokens, dim, apart) * (half ? 2 : 4);
    require(numbers.size >= size_t(needed), "there are fewer numbers");
    require(numbers.at % (half ? 2 : 4) == 0, "numbers are not aligned");
    const size_t rows = size_t(heads * tokens);
    const auto [cosines, sines] = angles(cos, sin, tokens, dim / 2, dim);
    require(!mean.at || (tokens && mean.size == size_t(heads * (4 + dim))), "the mean has too little memory");
    if (coded) {
        require(widths.size == rows, "a row has one width");
        int64_t bits = 0;
        for (size_t n = 0; n < rows; n++) {
            const uint8_t width = widths.as<const uint8_t>()[n];
            require(width <= 8 && width != 7, "no tier has this width");
            bits += width;
        }
        require(out.size == 2 + rows + size_t(bits * (eights(dim) / 8)), "codes have another size");
    } else {
        floats(out, int64_t(rows), "a row has one mean square");
    }
    return {numbers.as<void>(), half, tokens ? heads : 0, tokens, apart, dim, cosines, sines,
            mean.as<uint8_t>(), widths.as<const uint8_t>(), dct.as<const float>(), out.as<void>()};
}

template <class T> std::unique_ptr<T[]> space(int64_t count) {
    return std::unique_ptr<T[]>(new T[size_t(count)]);
}

void run(const std::vector<Given> &given, bool coded) {
    std::vector<Source> sources;
    int64_t numbers = 0, means = 0, rows = 0;
    for (const Given &one : given) {
        const Source &source = sources.emplace_back(checked(one, coded));
        rows = std::max(rows, source.heads * source.tokens);
        numbers = std::max(numbers, source.heads * source.tokens * source.dim);
        means = std::max(means, (source.heads + 2) * source.dim + 2);
    }
    nb::gil_scoped_release release;
    const auto x = space<float>(numbers), squares = space<float>(coded ? rows : 0);
    const auto mean = space<double>(means);
    const auto order = space<int64_t>(coded ? rows : 0);
    float *own = reinterpret_cast<float *>(mean.get());
    for (const Source &source : sources)
        if (coded) PICK(encode)(source, x.get(), own, squares.get(), order.get());
        else PICK(measure)(source, x.get(), own);
}

void rotate(Span rows, int64_t heads, int64_t tokens, int64_t apart, int dim, Span cos, Span sin) {
    require(dim > 0 && dim <= 1 << 16 && dim % 2 == 0, "an odd dim has no pairs to rotate");
    require_size(heads, tokens, dim);
    require(rows.size >= size_t(reach(heads, tokens, dim, apart)) * 4, "there are fewer rows");
    require(rows.at % 4 == 0, "rows are not aligned");
    if (!tokens) return;
    require(cos.at, "there are no cosines");
    const auto [cosines, sines] = angles(cos, sin, tokens, dim, dim);
    nb::gil_scoped_release release;
    PICK(rotate)(rows.as<float>(), heads, tokens, apart, dim, cosines, sines);
}

}  // namespace

void bind_encode(nb::module_ &m) {
    m.def("measure", [](const std::vector<Given> &sources) { run(sources, false); });
    m.def("encode", [](const std::vector<Given> &sources) { run(sources, true); });
    m.def("rotate", &rotate);
}
