// Checks of what encode_simd.cpp is given: docs/cachecard.md 4, `packed`.
#include "encode.hpp"
#include "bind.hpp"
#include "threads.hpp"

#include <algorithm>

namespace {

// Numbers, mean, widths, out.
using Given = std::tuple<GivenNumbers, Span, Span, Span>;

Source checked(const Given &given, bool coded) {
    const auto &[numbers, mean, widths, out] = given;
    Numbers from = checked(numbers);
    const int64_t heads = from.heads, tokens = from.tokens, dim = from.dim;
    const size_t rows = size_t(heads * tokens);
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
    if (!tokens) from.heads = 0;
    return {from, mean.as<uint8_t>(), widths.as<const uint8_t>(), out.as<void>()};
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

void rotate(const GivenNumbers &given) {
    const Numbers rows = checked(given);
    require(!rows.bfloat16, "only float32 are rotated in place");
    if (!rows.tokens) return;
    require(rows.cos, "there are no cosines");
    nb::gil_scoped_release release;
    PICK(rotate)(rows);
}

}  // namespace

void bind_encode(nb::module_ &m) {
    m.def("measure", [](const std::vector<Given> &sources, int threads) { run(sources, false, threads); });
    m.def("encode", [](const std::vector<Given> &sources, int threads) { run(sources, true, threads); });
    m.def("rotate", &rotate);
}
