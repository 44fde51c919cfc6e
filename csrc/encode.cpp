// Checks of what encode_simd.cpp is given: docs/cachecard.md 4, `packed`.
#include "encode.hpp"
#include "bind.hpp"
#include "threads.hpp"

#include <algorithm>

namespace {

// numbers, whether bfloat16, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out
using Given = std::tuple<Span, bool, int64_t, int64_t, int64_t, int, Span, Span, Span, Span, Span, Span>;

Source checked(const Given &given, bool coded) {
    const auto &[numbers, half, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out] = given;
    require_dim(dim, dct);
    require_size(heads, tokens, dim);
    require_numbers(numbers, half ? 2 : 4, heads, tokens, dim, apart);
    const size_t rows = size_t(heads * tokens);
    const auto [cosines, sines] = angles(cos, sin, tokens, dim);
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

void run(const std::vector<Given> &given, bool coded, int threads) {
    std::vector<Source> sources;
    size_t bytes = 0;
    for (const Given &one : given) {
        sources.push_back(checked(one, coded));
        bytes = std::max(bytes, encode_space(sources.back()));
    }
    nb::gil_scoped_release release;
    on_threads(threads, sources.size(), bytes, [&](size_t number, char *space) {
        if (coded) PICK(encode)(sources[number], space);
        else PICK(measure)(sources[number], space);
    });
}

void rotate(Span rows, int64_t heads, int64_t tokens, int64_t apart, int dim, Span cos, Span sin) {
    require(dim > 0 && dim <= 1 << 16, "no kernel rotates rows of this dim");
    require_size(heads, tokens, dim);
    require_numbers(rows, 4, heads, tokens, dim, apart);
    if (!tokens) return;
    require(cos.at, "there are no cosines");
    const auto [cosines, sines] = angles(cos, sin, tokens, dim);
    nb::gil_scoped_release release;
    PICK(rotate)(rows.as<float>(), heads, tokens, apart, dim, cosines, sines);
}

}  // namespace

void bind_encode(nb::module_ &m) {
    m.def("measure", [](const std::vector<Given> &sources, int threads) { run(sources, false, threads); });
    m.def("encode", [](const std::vector<Given> &sources, int threads) { run(sources, true, threads); });
    m.def("rotate", &rotate);
}
