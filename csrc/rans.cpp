// Range coding of small integers: rANS (Duda, arXiv:1311.2540), see docs/codec-transform.md.
//
// Four interleaved states hide the latency of each other; they take 16 bits at a time, and
// probabilities have 12 bits. Column c of a row belongs to state c % 4. Each row of numbers is
// coded with one row of `table`, which names a distribution for every column. A number that its
// distribution has no symbol for is escaped: it costs whole bytes.
#include "bind.hpp"
#include "threads.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace {

constexpr uint32_t BITS = 12, TOTAL = 1 << BITS;
constexpr int32_t LARGEST = 31;  // magnitude with a symbol of its own
constexpr int32_t ESCAPE = 2 * LARGEST + 1, SYMBOLS = ESCAPE + 1;
constexpr uint32_t LOW = 1 << 16;                       // the least state
constexpr uint32_t ESCAPED = uint32_t(ESCAPE) << 24;    // the least entry of an escape

template <class T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T> using Flat = Array<const T, 1>;
template <class T> using Matrix = Array<const T, 2>;

// Raise ValueError of an array whose numbers do not lie at multiples of their size.
template <class... Arrays> void require_aligned(const Arrays &...arrays) {
    require(((uintptr_t(arrays.data()) % sizeof(*arrays.data()) == 0) && ...), "numbers are not aligned");
}

// Which distribution each number has: table[rows[t], c], all of them below `classes`.
struct Classes {
    std::span<const int32_t> rows;
    const int32_t *table;
    size_t dim;

    Classes(const Flat<int32_t> &rows, const Matrix<int32_t> &table, size_t classes)
        : rows(rows.data(), rows.size()), table(table.data()), dim(table.shape(1)) {
        require_aligned(rows, table);
        auto inside = [](const int32_t *at, size_t size, size_t most) {
            return std::all_of(at, at + size, [most](int32_t n) { return size_t(n) < most; });
        };
        require(inside(rows.data(), rows.size(), table.shape(0)), "rows name no row of the table");
        require(inside(table.data(), table.size(), classes), "the table names no distribution");
        require(dim <= 1 << 20, "a row has too many columns");  // their magnitudes are summed up
    }

    const int32_t *operator[](size_t token) const { return table + rows[token] * dim; }
};

// Numbers to the nearest multiple of their row's unit, those near the middle to the lower one.
// `out` is what the decoder will see, `activity` the sum of a row's magnitudes.
void quantize(Matrix<float> z, Flat<int32_t> rows, Matrix<int32_t> table, Flat<float> units,
              float dead, Matrix<float> points, Array<int32_t, 2> values, Array<float, 2> out,
              Array<int32_t, 1> activity) {
    const Classes classes(rows, table, points.shape(0));
    const size_t n = rows.size(), dim = classes.dim;
    require_aligned(z, units, points, values, out, activity);
    require(points.shape(1) == size_t(SYMBOLS), "points are not those of all symbols");
    require(units.size() == n && activity.size() == n && z.size() == n * dim
                && values.size() == n * dim && out.size() == n * dim, "sizes differ");
    nb::gil_scoped_release release;
    const float bias = 0.5f - dead, limit = 1 << 30;
    for (size_t t = 0; t < n; t++) {
        const float unit = units.data()[t], inverse = 1 / unit, *from = z.data() + t * dim;
        int32_t total = 0, *to = values.data() + t * dim;
        for (size_t c = 0; c < dim; c++) {
            const float size = std::abs(std::abs(from[c]) * inverse + bias);
            // Rounded towards 0.
            const int32_t value = int32_t(std::copysign(size < limit ? size : limit, from[c]));
            const int32_t magnitude = std::abs(value);
            const bool known = magnitude <= LARGEST;
            const float *own = points.data() + size_t(classes[t][c]) * SYMBOLS;
            to[c] = value;
            out.data()[t * dim + c] = (known ? own[value + LARGEST] : float(value)) * unit;
            total += std::min(magnitude, LARGEST);
        }
        activity.data()[t] = total;
    }
}

// Code `values`, backwards, into the ends of `words` and `escapes`. Returns where the output begins
// in each, and the states.
std::tuple<size_t, size_t, std::array<uint32_t, 4>> encode(
    Matrix<int32_t> values, Flat<int32_t> rows, Matrix<int32_t> table, Matrix<int32_t> freq,
    Matrix<int32_t> start, Array<uint16_t, 1> words, Array<uint8_t, 1> escapes) {
    const Classes classes(rows, table, freq.shape(0));
    const size_t dim = classes.dim;
    require_aligned(values, freq, start, words);
    require(freq.shape(1) == size_t(SYMBOLS) && start.size() == freq.size(), "tables differ");
    require(values.size() == rows.size() * dim, "sizes differ");
    require(words.size() >= values.size() && escapes.size() >= 5 * values.size(), "no room");
    nb::gil_scoped_release release;
    std::array<uint32_t, 4> state{LOW, LOW, LOW, LOW};
    size_t at = words.size(), far = escapes.size();
    for (size_t t = rows.size(); t-- > 0;) {
        for (size_t c = dim; c-- > 0;) {
            const int64_t value = values.data()[t * dim + c];
            const size_t own = size_t(classes[t][c]) * SYMBOLS;
            int64_t symbol = value + LARGEST;
            if (symbol < 0 || symbol >= ESCAPE || freq.data()[own + symbol] == 0) {
                symbol = ESCAPE;
                const uint64_t rest = 2 * uint64_t(std::abs(value)) - (value < 0);
                // Seven bits a byte, the last byte without the high bit; written from the end.
                int count = 1;
                while (rest >> (7 * count)) count++;
                for (int n = count; n-- > 0;)
                    escapes.data()[--far] = (rest >> (7 * n) & 127) | (n < count - 1 ? 128 : 0);
            }
            const uint32_t f = freq.data()[own + symbol], first = start.data()[own + symbol];
            require(f - 1 < TOTAL && first < TOTAL, "a symbol has no slots");
            uint32_t &x = state[c & 3];
            if (x >= uint64_t(f) << (32 - BITS)) {
                words.data()[--at] = uint16_t(x);
                x >>= 16;
            }
            x = (x / f << BITS) + x % f + first;
        }
    }
    return {at, far, state};
}

// What is left of one chunk's streams. Whatever their bytes are, nothing is read behind their ends.
struct Streams {
    std::span<const uint16_t> words;
    std::span<const uint8_t> escapes;
    size_t at = 0, far = 0;

    // The entry of the next symbol of the state `x`. `lookup` holds for every slot of a
    // distribution symbol << 24 | (frequency - 1) << 12 | slot - start.
    uint32_t entry(uint32_t &x, const uint32_t *lookup) {
        const uint32_t found = lookup[x & (TOTAL - 1)];
        x = ((found >> 12 & (TOTAL - 1)) + 1) * (x >> BITS) + (found & (TOTAL - 1));
        if (x < LOW) {
            x = x << 16 | (at < words.size() ? words[at] : 0);
            at++;
        }
        return found;
    }

    int64_t escaped() {
        uint64_t rest = 0;
        for (int shift = 0; far < escapes.size() && shift < 35; shift += 7) {
            const uint64_t byte = escapes[far++];
            rest |= (byte & 127) << shift;
            if (byte < 128) break;
        }
        const int64_t size = (rest + 1) >> 1;
        return rest & 1 ? -size : size;
    }

    // The number of an entry in `out`; returns its magnitude.
    int32_t put(uint32_t entry, const float *points, float unit, float &out) {
        const int64_t symbol = entry >> 24, value = symbol < ESCAPE ? symbol - LARGEST : escaped();
        const bool known = std::abs(value) <= LARGEST;
        out = (known ? points[value + LARGEST] : float(value)) * unit;
        return known ? int32_t(std::abs(value)) : LARGEST;
    }
};

// Undo `encode` for the tokens from `start` to `stop`. Returns whether all came out even.
bool decode_chunk(Streams from, std::array<uint32_t, 4> x, size_t start, size_t stop,
                  const Classes &classes, const uint32_t *lookup, const float *points,
                  const float *units, float *out, int32_t *activity) {
    const size_t dim = classes.dim;
    for (size_t t = start; t < stop; t++) {
        const int32_t *row = classes[t];
        const float unit = units[t];
        float *own = out + t * dim;
        int32_t total = 0;
        size_t c = 0;
        for (; c + 4 <= dim; c += 4) {
            uint32_t found[4];
            for (int n = 0; n < 4; n++)
                found[n] = from.entry(x[n], lookup + size_t(row[c + n]) * TOTAL);
            if (*std::max_element(found, found + 4) < ESCAPED) {
                for (int n = 0; n < 4; n++) {
                    const int32_t symbol = found[n] >> 24;
                    own[c + n] = points[size_t(row[c + n]) * SYMBOLS + symbol] * unit;
                    total += std::abs(symbol - LARGEST);
                }
                continue;
            }
            for (int n = 0; n < 4; n++) {
                const float *points_of = points + size_t(row[c + n]) * SYMBOLS;
                total += from.put(found[n], points_of, unit, own[c + n]);
            }
        }
        for (int n = 0; c < dim; c++, n++) {
            const uint32_t found = from.entry(x[n], lookup + size_t(row[c]) * TOTAL);
            total += from.put(found, points + size_t(row[c]) * SYMBOLS, unit, own[c]);
        }
        activity[t] = total;
    }
    const bool ended = from.at == from.words.size() && from.far == from.escapes.size();
    return ended && x == std::array<uint32_t, 4>{LOW, LOW, LOW, LOW};
}

// Words, states, escapes, first token, and the one behind the last.
using Chunk = std::tuple<Flat<uint16_t>, Flat<uint32_t>, Flat<uint8_t>, size_t, size_t>;

// Undo `encode` for each chunk, on up to `threads` threads. `rows`, `units`, `out` and `activity`
// are of the tokens of all chunks. Returns whether all came out even.
bool decode(std::vector<Chunk> chunks, Flat<int32_t> rows, Matrix<int32_t> table,
            Flat<uint32_t> lookup, Matrix<float> points, Flat<float> units, Array<float, 2> out,
            Array<int32_t, 1> activity, int threads) {
    const Classes classes(rows, table, points.shape(0));
    const size_t n = rows.size();
    require_aligned(lookup, points, units, out, activity);
    require(points.shape(1) == size_t(SYMBOLS), "points are not those of all symbols");
    require(lookup.size() == points.shape(0) * TOTAL, "slots are not those of all tables");
    require(units.size() == n && activity.size() == n && out.size() == n * classes.dim,
            "sizes differ");
    for (auto &[words, states, escapes, start, stop] : chunks) {
        require_aligned(words, states);
        require(states.size() == 4 && start <= stop && stop <= n, "a chunk of no tokens");
    }
    nb::gil_scoped_release release;
    std::vector<char> even(chunks.size());
    on_threads(threads, chunks.size(), 0, [&](size_t number, char *) {
        auto &[words, states, escapes, start, stop] = chunks[number];
        std::array<uint32_t, 4> x;
        std::copy_n(states.data(), 4, x.begin());
        const Streams from{{words.data(), words.size()}, {escapes.data(), escapes.size()}};
        even[number] = decode_chunk(from, x, start, stop, classes, lookup.data(), points.data(),
                                    units.data(), out.data(), activity.data());
    });
    return std::all_of(even.begin(), even.end(), [](char one) { return one; });
}

}  // namespace

void bind_rans(nb::module_ &m) {
    using nb::arg;
    auto out = [](const char *name) { return arg(name).noconvert(); };  // no copy is written to
    m.def("rans_quantize", &quantize, arg("z"), arg("rows"), arg("table"), arg("units"),
          arg("dead"), arg("points"), out("values"), out("out"), out("activity"));
    m.def("rans_encode", &encode, arg("values"), arg("rows"), arg("table"), arg("freq"),
          arg("start"), out("words"), out("escapes"));
    m.def("rans_decode", &decode, arg("chunks"), arg("rows"), arg("table"), arg("lookup"),
          arg("points"), arg("units"), out("out"), out("activity"), arg("threads"));
}
