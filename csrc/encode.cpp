// Checks of what encode_simd.cpp is given.
#include "encode.hpp"
#include "bind.hpp"
#include "decode.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

namespace {

constexpr int64_t MOST = int64_t(1) << 40;  // numbers of a part, so that no product overflows
constexpr int MOST_DIM = 4096;

// numbers, whether bfloat16, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out
using Given = std::tuple<Span, bool, int64_t, int64_t, int64_t, int, Span, Span, Span, Span, Span, Span>;

void require_dim(int dim, Span dct) {
    require(dim > 0 && dim <= MOST_DIM && (dim & -dim) <= 256, "no kernel has rows of this dim");
    const int64_t m = dim / (dim & -dim);
    floats(dct, m * m, "the DCT is not that of the dim's odd factor");
}

Source checked(const Given &given, bool coded) {
    const auto &[numbers, half, heads, tokens, apart, dim, cos, sin, mean, widths, dct, out] = given;
    require_dim(dim, dct);
    require(heads >= 0 && tokens >= 0 && heads < MOST && tokens < MOST
                && heads * (tokens >> 20) < (MOST >> 20) / dim, "a part is too large");
    require(heads <= 1 || (apart >= tokens * dim && apart < MOST / heads), "heads overlap");
    const size_t rows = size_t(heads * tokens);
    const int64_t reach = rows ? (heads - 1) * apart + tokens * dim : 0;
    require(numbers.size >= size_t(reach) * (half ? 2 : 4), "there are fewer numbers");
    require(!cos.at == !sin.at, "cosines and sines come together");
    require(!cos.at || dim % 2 == 0, "an odd dim has no pairs to turn");
    for (Span one : {cos, sin})
        if (one.at) floats(one, tokens * (dim / 2), "a token has dim / 2 cosines and sines");
    require(!mean.at || (tokens && mean.size == size_t(heads * (4 + dim))), "the mean has no room");
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
    require(numbers.at % (half ? 2 : 4) == 0, "numbers are not aligned");
    return {numbers.as<void>(), half, tokens ? heads : 0, tokens, apart, dim,
            cos.as<const float>(), sin.as<const float>(), mean.as<uint8_t>(),
            widths.as<const uint8_t>(), dct.as<const float>(), out.as<void>()};
}

template <class T> std::unique_ptr<T[]> room(int64_t count) {
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
    const auto x = room<float>(numbers), squares = room<float>(coded ? rows : 0);
    const auto mean = room<double>(means);
    const auto order = room<int64_t>(coded ? rows : 0);
    float *own = reinterpret_cast<float *>(mean.get());
    for (const Source &source : sources)
        if (coded) PICK(encode)(source, x.get(), own, squares.get(), order.get());
        else PICK(measure)(source, x.get(), own);
}

void encode_rows(Span rows, Span info, Span scales, int dim, Span dct, Span out) {
    require_dim(dim, dct);
    const int64_t count = int64_t(info.size);
    require(rows.size == 4 * info.size * size_t(dim), "a row has one byte");
    floats(scales, 32, "scales are 32");
    require(out.size == size_t(widths(info) * (eights(dim) / 8)), "codes have another size");
    nb::gil_scoped_release release;
    const auto x = room<float>(count * dim);
    const auto order = room<int64_t>(count);
    memcpy(x.get(), rows.as<void>(), rows.size);
    PICK(encode_rows)(x.get(), info.as<const uint8_t>(), scales.as<const float>(), count, dim,
                      dct.as<const float>(), out.as<uint8_t>(), order.get());
}

void rotate(Span rows, int64_t heads, int64_t tokens, int64_t apart, int dim, Span cos, Span sin) {
    require(dim > 0 && dim <= 1 << 16 && dim % 2 == 0, "an odd dim has no pairs to turn");
    require(heads >= 0 && tokens >= 0 && heads < MOST && tokens < MOST / dim, "rows are too many");
    require(heads <= 1 || (apart >= tokens * dim && apart < MOST / heads), "heads overlap");
    const int64_t reach = heads ? (heads - 1) * apart + tokens * dim : 0;
    require(rows.size >= size_t(reach) * 4, "there are fewer rows");
    require(rows.at % 4 == 0, "rows are not aligned");
    for (Span one : {cos, sin}) floats(one, tokens * dim, "a token has dim cosines and sines");
    if (!tokens) return;
    nb::gil_scoped_release release;
    PICK(rotate)(rows.as<float>(), heads, tokens, apart, dim, cos.as<const float>(), sin.as<const float>());
}

}  // namespace

void bind_encode(nb::module_ &m) {
    m.def("measure", [](const std::vector<Given> &sources) { run(sources, false); });
    m.def("encode", [](const std::vector<Given> &sources) { run(sources, true); });
    m.def("encode_rows", &encode_rows);
    m.def("rotate", &rotate);
}
